"""Means of blocks and windows: float64 loops, identities, both layouts."""

import time

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fedjax_het_kernels.overlap_mean import reference, rivals, specs, xla
from fedjax_het_kernels.overlap_mean.op import (
  finish_overlap,
  flatten_blocks,
  overlap_mean,
  overlap_mean_blocks,
  overlap_sums_blocks,
)

SPECS = [
  pytest.param(spec, id=spec.name)
  for spec in specs.BLOCKS
  if not spec.bench and not spec.gpu
]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def oracle(values, rows, cols, weights, old, row_start=None, col_start=None):
  """One number at a time, in Python floats."""
  height, width = old.shape
  mean = np.float64(old)
  for r in range(height):
    for c in range(width):
      total = held = 0.0
      for n in range(len(values)):
        i = (r - (0 if row_start is None else int(row_start[n]))) % height
        j = (c - (0 if col_start is None else int(col_start[n]))) % width
        if i < rows[n] and j < cols[n] and weights[n] != 0:
          total += float(weights[n]) * float(values[n, i, j])
          held += float(weights[n])
      if held:
        mean[r, c] = total / held
  return mean


def case(clients, shape, stored, windows, seed=0, dtype=np.float32):
  """Blocks of any size, NaN beside them and from clients of weight 0."""
  rng = np.random.default_rng(seed)
  limits = np.minimum(shape, stored)
  rows, cols = (
    rng.integers(0, most + 1, clients, dtype=np.int32) for most in limits
  )
  values = rng.standard_normal((clients, *stored)).astype(dtype)
  weights = rng.random(clients, np.float32)
  weights[rng.random(clients) < 0.2] = 0
  for n in range(clients):
    values[n, rows[n] :], values[n, :, cols[n] :] = np.nan, np.nan
  values[weights == 0] = np.nan
  old = rng.standard_normal(shape).astype(dtype)
  starts = {
    name: rng.integers(0, size, clients, dtype=np.int32)
    for name, size in zip(("row_start", "col_start"), shape, strict=True)
    if name in windows
  }
  return (values, rows, cols, weights, old), starts


def flatten(values, rows, cols):
  return flatten_blocks(
    [v[:r, :c] for v, r, c in zip(values, rows, cols, strict=True)]
  )


WINDOWS = [(), ("row_start",), ("col_start",), ("row_start", "col_start")]


@pytest.mark.parametrize("implementation", [None, "interpret"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("spec", SPECS)
def test_against_reference(interpreter, spec, flat, implementation):
  values, rows, cols, weights, old, *starts = specs.block_inputs(spec)
  expected = reference.overlap_mean_blocks(
    values, rows, cols, weights, old, *starts
  )
  mean = overlap_mean_blocks(
    flatten(values, rows, cols) if flat else values,
    rows,
    cols,
    weights,
    old,
    row_start=starts[0],
    col_start=starts[1],
    implementation=implementation,
  )
  assert (mean.shape, mean.dtype) == (old.shape, jnp.float32)
  np.testing.assert_allclose(mean, expected, **CLOSE)


@settings(max_examples=10, deadline=None)
@given(
  clients=st.integers(0, 5),
  shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
  stored=st.tuples(st.integers(1, 10), st.integers(1, 10)),
  windows=st.sampled_from(WINDOWS),
  flat=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_against_loops(clients, shape, stored, windows, flat, seed):
  args, starts = case(clients, shape, stored, windows, seed)
  expected = oracle(*args, **starts)
  np.testing.assert_allclose(
    reference.overlap_mean_blocks(*args, **starts), expected
  )
  if flat:
    args = (flatten(*args[:3]), *args[1:])
  mean = jax.jit(overlap_mean_blocks)(*args, **starts)
  np.testing.assert_allclose(mean, expected, **CLOSE)


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("flat", [False, True])
def test_several_tiles(interpreter, monkeypatch, flat, windows):
  """Blocks wider than a tile of the loop and of the kernel."""
  monkeypatch.setattr(xla, "TILE", 24)
  args, starts = case(5, (35, 150), (20, 141), windows)
  expected = oracle(*args, **starts)
  if flat:
    args = (flatten(*args[:3]), *args[1:])
  for implementation in ("xla", "interpret"):
    mean = overlap_mean_blocks(*args, **starts, implementation=implementation)
    np.testing.assert_allclose(mean, expected, **CLOSE)


@pytest.mark.parametrize("implementation", ["xla", "interpret"])
def test_half_precision(interpreter, implementation):
  args, starts = case(30, (9, 20), (9, 20), WINDOWS[3], dtype=np.float16)
  mean = overlap_mean_blocks(*args, **starts, implementation=implementation)
  assert mean.dtype == jnp.float16
  np.testing.assert_allclose(
    mean, oracle(*args, **starts), rtol=1e-3, atol=1e-4
  )


def test_full_width_blocks_are_rows():
  """The first rows of each client, as entries of `overlap_mean`."""
  (values, rows, _, weights, old), _ = case(6, (8, 12), (8, 12), ())
  values = np.nan_to_num(values)
  cols = np.full(6, 12, np.int32)
  ids = np.where(np.arange(8) < rows[:, None], np.arange(8), -1)
  np.testing.assert_allclose(
    overlap_mean_blocks(values, rows, cols, weights, old),
    overlap_mean(
      values.reshape(48, 12),
      ids.astype(np.int32).reshape(48),
      np.repeat(weights, 8),
      old,
    ),
    **CLOSE,
  )


def test_windows_roll_the_blocks():
  """One start for all is a roll of the mean; a start of 0 changes no bit."""
  (values, rows, cols, weights, old), _ = case(6, (8, 12), (8, 12), ())
  full = overlap_mean_blocks(values, rows, cols, weights, old)
  zeros = np.zeros(6, np.int32)
  np.testing.assert_array_equal(
    full,
    overlap_mean_blocks(
      values, rows, cols, weights, old, row_start=zeros, col_start=zeros
    ),
  )
  rolled = overlap_mean_blocks(
    values,
    rows,
    cols,
    weights,
    np.roll(old, (3, 5), (0, 1)),
    row_start=zeros + 3,
    col_start=zeros + 5,
  )
  np.testing.assert_array_equal(rolled, np.roll(full, (3, 5), (0, 1)))


def test_flattened_layout():
  blocks = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, 14, dtype=np.float32).reshape(2, 1, 4),  # two clients
    np.zeros((0, 5), np.float32),
  ]
  assert flatten_blocks(blocks).tolist() == [
    *(0, 1, 2, 0, 3, 4, 5, 0),
    *(6, 7, 8, 9, 10, 11, 12, 13),
  ]
  assert flatten_blocks([]).shape == (0,)
  with pytest.raises(ValueError, match=r"not \[3\]"):
    flatten_blocks([np.zeros(3, np.float32)])


@pytest.mark.parametrize("implementation", [None, "interpret"])
def test_chunks_add_up(interpreter, implementation):
  (values, rows, cols, weights, old), starts = case(
    7, (9, 20), (9, 20), WINDOWS[3]
  )
  chunks = [
    overlap_sums_blocks(
      values[part],
      rows[part],
      cols[part],
      weights[part],
      shape=old.shape,
      implementation=implementation,
      **{name: start[part] for name, start in starts.items()},
    )
    for part in (slice(0, 3), slice(3, 3), slice(3, 7))
  ]
  sums = jax.tree.map(lambda *parts: sum(parts), *chunks)
  assert sums.total.shape == sums.held.shape == old.shape
  expected = oracle(values, rows, cols, weights, old, **starts)
  np.testing.assert_allclose(finish_overlap(sums, old), expected, **CLOSE)


@pytest.mark.parametrize("flat", [False, True])
def test_shard_map(flat):
  """Clients over 8 devices: local sums, then psum."""
  args, starts = case(16, (9, 20), (9, 20), WINDOWS[3])
  expected = oracle(*args, **starts)
  values, rows, cols, weights, old = args
  if flat:  # the shards of a flat vector must be of one length
    rows, cols = np.full(16, 9, np.int32), np.full(16, 18, np.int32)
    values = np.nan_to_num(values)
    expected = oracle(values, rows, cols, weights, old, **starts)
    values = flatten(values, rows, cols)
  mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))

  def local(values, rows, cols, weights, row_start, col_start, old):
    sums = overlap_sums_blocks(
      values,
      rows,
      cols,
      weights,
      shape=old.shape,
      row_start=row_start,
      col_start=col_start,
    )
    return finish_overlap(jax.lax.psum(sums, "clients"), old)

  data = P("clients")
  sharded = jax.shard_map(
    local, mesh=mesh, in_specs=(*[data] * 6, P()), out_specs=P()
  )
  given = values, rows, cols, weights, *starts.values(), old
  np.testing.assert_allclose(jax.jit(sharded)(*given), expected, **CLOSE)


def test_vmap(interpreter):
  """Over the leading axes of a convolution; the widths are shared."""
  (_, rows, cols, weights, old), _ = case(4, (6, 9), (6, 9), ())
  rng = np.random.default_rng(1)
  values = rng.standard_normal((3, 4, 6, 9), np.float32)
  olds = np.stack([old, 2 * old, -old])
  expected = [
    oracle(v, rows, cols, weights, o) for v, o in zip(values, olds, strict=True)
  ]
  for implementation in (None, "xla", "interpret"):
    mean = jax.vmap(
      lambda v, o, implementation=implementation: overlap_mean_blocks(
        v, rows, cols, weights, o, implementation=implementation
      )
    )(values, olds)
    np.testing.assert_allclose(mean, expected, **CLOSE)


@pytest.mark.parametrize("windows", [WINDOWS[0], WINDOWS[3]])
@pytest.mark.parametrize("flat", [False, True])
def test_derivatives(flat, windows):
  """Forward at the values it is the sum; backward the share of the mean."""
  args, starts = case(5, (7, 9), (7, 9), windows)
  values, rows, cols, weights, old = args
  values = jnp.nan_to_num(values)
  if flat:
    values = flatten(values, rows, cols)

  def total(values):
    return overlap_sums_blocks(
      values, rows, cols, weights, shape=old.shape, **starts
    ).total

  sums, tangent = jax.jvp(total, (values,), (values,))
  np.testing.assert_allclose(sums, tangent, **CLOSE)
  cotangent = jnp.asarray(np.random.default_rng(1).standard_normal((7, 9)))

  def loss(values, weights):
    mean = overlap_mean_blocks(values, rows, cols, weights, old, **starts)
    return (mean * cotangent.astype(jnp.float32)).sum()

  by_values, by_weights = jax.grad(loss, (0, 1))(values, jnp.asarray(weights))
  # A mean of degree 1 in the values and 0 in the weights (Euler).
  held = overlap_sums_blocks(
    jnp.ones_like(values), rows, cols, weights, shape=old.shape, **starts
  ).held
  mean = overlap_mean_blocks(values, rows, cols, weights, old, **starts)
  expected = jnp.where(held > 0, mean * cotangent.astype(jnp.float32), 0).sum()
  np.testing.assert_allclose((by_values * values).sum(), expected, rtol=1e-4)
  np.testing.assert_allclose((by_weights * weights).sum(), 0, atol=1e-4)
  step = 1e-2  # linear in the values, so differences are exact but for rounding
  direction = jax.random.normal(jax.random.key(0), values.shape)
  moved = [loss(values + s * direction, weights) for s in (step, -step)]
  np.testing.assert_allclose(
    (by_values * direction).sum(),
    (moved[0] - moved[1]) / (2 * step),
    rtol=1e-2,
    atol=1e-3,
  )


VALUES = np.ones((3, 4, 8), np.float32)
COUNTS = np.full(3, 4, np.int32)
WEIGHTS = np.ones(3, np.float32)
OLD = np.zeros((6, 8), np.float32)


@pytest.mark.parametrize(
  "given, options, message",
  [
    ({"values": VALUES[0]}, {}, r"values \[N, H, W\]"),
    ({"values": VALUES[:2]}, {}, "2 blocks need as many weights, not 3"),
    ({"values": VALUES.astype(int)}, {}, "values must be float16"),
    ({"old": OLD[0]}, {}, r"a matrix \[R, C\]"),
    ({"rows": COUNTS + 1}, {}, r"rows must be in 0 \.\.\. 4"),
    ({"cols": COUNTS + 5}, {}, r"cols must be in 0 \.\.\. 8"),
    ({"rows": -COUNTS}, {}, r"rows must be in 0 \.\.\. 4"),
    ({"rows": COUNTS.astype(np.uint8)}, {}, r"rows must be int32\[3\]"),
    ({"weights": -WEIGHTS}, {}, "not negative"),
    ({"weights": WEIGHTS[:2]}, {}, r"rows must be int32\[2\]|float32\[3\]"),
    ({}, {"row_start": COUNTS + 2}, r"row_start must be in 0 \.\.\. 5"),
    ({}, {"col_start": COUNTS[:2]}, r"col_start must be int32\[3\]"),
    ({"values": VALUES.ravel()}, {}, "need 48 flattened values, not 96"),
    ({}, {"implementation": "cuda"}, "allowed are"),
  ],
)
def test_wrong_arguments(given, options, message):
  args = {
    "values": VALUES,
    "rows": COUNTS,
    "cols": COUNTS,
    "weights": WEIGHTS,
    "old": OLD,
  }
  with pytest.raises(ValueError, match=message):
    overlap_mean_blocks(**{**args, **given}, **options)


def test_sizes_are_cut_to_what_is_there_under_jit():
  """Nothing is read beside the stored blocks, whatever rows and cols say."""
  mean = jax.jit(overlap_mean_blocks)(
    VALUES, 9 * COUNTS, 9 * COUNTS, WEIGHTS, OLD
  )
  np.testing.assert_array_equal(mean, np.repeat([1, 0], [4, 2])[:, None] + OLD)


@pytest.mark.slow  # it measures, if only a ratio of CPU times
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="guards XLA:CPU")
@pytest.mark.parametrize("windows", [False, True])
def test_loop_is_quick_and_small(windows):
  spec = specs.BlockSpec("guard", 120, 256, 512, (256, 512), windows)
  variants, arrays = rivals.block_variants(spec), specs.block_inputs(spec)

  def measure(name):
    prepare, run = variants[name]
    args = jax.block_until_ready(jax.jit(prepare)(*arrays))
    run = jax.jit(run).lower(*args).compile()
    times = []
    for _ in range(5):
      start = time.process_time()
      jax.block_until_ready(run(*args))
      times.append(time.process_time() - start)
    return min(times), run.memory_analysis().temp_size_in_bytes

  ours, temp = measure("ours")
  padded, _ = measure("padded dense, mask")
  assert ours < padded / 2
  assert temp <= 6 * 4 * spec.rows * spec.columns
