"""Means over holders: float64 loops, identities, transformations, cost."""

import time

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fedjax_het.core import reduce
from fedjax_het_kernels.overlap_mean import reference, rivals, specs
from fedjax_het_kernels.overlap_mean.op import (
  finish_overlap,
  overlap_mean,
  overlap_sums,
  row_index,
)

SPECS = [
  pytest.param(spec, id=spec.name)
  for spec in specs.SPECS
  if not spec.bench and not spec.gpu
]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def oracle(values, ids, weights, old):
  """One number at a time, in Python floats."""
  mean = [[float(x) for x in row] for row in old]
  for r in range(len(mean)):
    for c in range(len(mean[r])):
      total = held = 0.0
      for t in range(len(values)):
        if ids[t] == r and weights[t] != 0:
          total += float(weights[t]) * float(values[t][c])
          held += float(weights[t])
      if held:
        mean[r][c] = total / held
  return np.array(mean).reshape(np.shape(old))


def entries(rows, columns, count, seed=0, dtype=np.float32):
  """Entries of which some are padding, some weigh 0 and say NaN."""
  rng = np.random.default_rng(seed)
  values = rng.standard_normal((count, columns)).astype(dtype)
  ids = rng.integers(-2, rows + 2, count).astype(np.int32)
  weights = rng.random(count, np.float32)
  silent = rng.random(count) < 0.3
  weights[silent], values[silent] = 0, np.nan
  old = rng.standard_normal((rows, columns)).astype(dtype)
  return values, ids, weights, old


@pytest.mark.parametrize("implementation", [None, "xla", "interpret"])
@pytest.mark.parametrize("spec", SPECS)
def test_against_reference(spec, implementation, request):
  if implementation == "interpret":
    request.getfixturevalue("interpreter")
  values, ids, clients, weights, old = specs.inputs(spec)
  expected = reference.overlap_mean(values, ids, weights[clients], old)
  mean = overlap_mean(
    values, ids, weights[clients], old, implementation=implementation
  )
  assert (mean.shape, mean.dtype) == (old.shape, jnp.float32)
  np.testing.assert_allclose(mean, expected, **CLOSE)


@settings(max_examples=12, deadline=None)
@given(
  rows=st.integers(0, 9),
  columns=st.integers(0, 9),
  count=st.integers(0, 30),
  seed=st.integers(0, 2**32 - 1),
)
def test_against_loops(rows, columns, count, seed):
  args = entries(rows, columns, count, seed)
  expected = oracle(*args)
  np.testing.assert_allclose(jax.jit(overlap_mean)(*args), expected, **CLOSE)
  np.testing.assert_allclose(reference.overlap_mean(*args), expected)


@pytest.mark.parametrize("columns", [1, 31, 100, 513])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_interpreted_against_loops(interpreter, columns, count):
  args = entries(5, columns, count)
  mean = jax.jit(lambda *args: overlap_mean(*args, implementation="interpret"))(
    *args
  )
  np.testing.assert_allclose(mean, oracle(*args), **CLOSE)


@pytest.mark.parametrize("implementation", ["xla", "interpret"])
def test_half_precision(implementation, request):
  """Sums are float32, so only the result rounds."""
  if implementation == "interpret":
    request.getfixturevalue("interpreter")
  args = entries(4, 40, 300, dtype=np.float16)
  mean = overlap_mean(*args, implementation=implementation)
  assert mean.dtype == jnp.float16
  np.testing.assert_allclose(mean, oracle(*args), rtol=1e-3, atol=1e-4)


def test_bfloat16(interpreter):
  values, ids, weights, old = entries(4, 40, 50)
  brain = [jnp.asarray(x, jnp.bfloat16) for x in (values, old)]
  mean = overlap_mean(brain[0], ids, weights, brain[1])
  assert mean.dtype == jnp.bfloat16
  expected = oracle(np.float64(brain[0]), ids, weights, np.float64(brain[1]))
  np.testing.assert_allclose(np.float64(mean), expected, rtol=8e-3, atol=1e-3)
  with pytest.raises(ValueError, match="bfloat16"):
    overlap_mean(brain[0], ids, weights, brain[1], implementation="interpret")


@pytest.mark.parametrize("trailing", [(), (3,), (3, 2, 4)])
def test_any_number_of_axes(trailing):
  columns = int(np.prod(trailing))
  values, ids, weights, old = entries(6, columns, 20)
  mean = overlap_mean(
    values.reshape(-1, *trailing), ids, weights, old.reshape(-1, *trailing)
  )
  assert mean.shape == (6, *trailing)
  expected = oracle(values, ids, weights, old)
  np.testing.assert_allclose(mean.reshape(6, columns), expected, **CLOSE)


def test_all_hold_all_is_the_weighted_mean():
  rng = np.random.default_rng(0)
  models = rng.standard_normal((7, 5, 4), np.float32)
  weights = rng.random(7, np.float32)
  mean = overlap_mean(
    models.reshape(35, 4),
    np.tile(np.arange(5, dtype=np.int32), 7),
    np.repeat(weights, 5),
    np.full((5, 4), np.nan, np.float32),
  )
  np.testing.assert_allclose(
    mean, np.average(np.float64(models), axis=0, weights=weights), **CLOSE
  )


def test_against_the_reducer_of_dense_messages():
  """fedjax_het.core.reduce has the same mean, of values and masks."""
  values, ids, weights, old = entries(6, 5, 20)
  values, ids = np.nan_to_num(values), np.clip(ids, 0, 5)
  dense, mask = np.zeros((20, 6, 5), np.float32), np.zeros((20, 6, 5))
  dense[np.arange(20), ids], mask[np.arange(20), ids] = values, 1
  reducer = reduce.overlap_mean()
  zero = reducer.zero((dense[0], mask[0]))
  mean, held = reducer.finish(
    reducer.add(zero, (dense, jnp.asarray(mask, jnp.float32)), weights)
  )
  np.testing.assert_allclose(
    overlap_mean(values, ids, weights, old), np.where(held, mean, old), **CLOSE
  )


@pytest.mark.parametrize("rows, count", [(4, 50), (9, 3), (0, 5), (3, 0)])
def test_row_index(rows, count):
  ids = np.random.default_rng(0).integers(-3, rows + 3, count, dtype=np.int32)
  order, starts = jax.jit(row_index, static_argnums=1)(ids, rows)
  assert (order.dtype, starts.dtype) == (jnp.int32, jnp.int32)
  assert sorted(order.tolist()) == list(range(count))
  for r in range(rows):
    held = [t for t in range(count) if ids[t] == r]
    assert order[starts[r] : starts[r + 1]].tolist() == held


@pytest.mark.parametrize("implementation", [None, "interpret"])
def test_given_index_changes_no_bit(interpreter, implementation):
  values, ids, weights, old = entries(5, 33, 40)
  means = [
    overlap_mean(
      values, ids, weights, old, index=index, implementation=implementation
    )
    for index in (None, row_index(ids, 5))
  ]
  np.testing.assert_array_equal(*means)


def test_nobody_keeps_every_bit_of_the_old():
  old = np.array([[np.nan, -0.0], [1e-40, np.inf]], np.float32)
  values, nan = np.ones((3, 2), np.float32), np.full((3, 2), np.nan, np.float32)
  nowhere, somewhere = np.array([[-1, 2, 9], [0, 1, 0]], np.int32)
  weights = np.ones(3, np.float32)
  for mean in (
    overlap_mean(values, nowhere, weights, old),
    overlap_mean(nan, somewhere, 0 * weights, old),
  ):
    np.testing.assert_array_equal(
      np.asarray(mean).view(np.uint32), old.view(np.uint32)
    )


@pytest.mark.parametrize("implementation", [None, "interpret"])
def test_nan_is_not_hidden(interpreter, implementation):
  """That of a client with weight shows in its row, a NaN weight, too."""
  values, weights = jnp.ones((4, 3)), jnp.ones(4)
  ids, old = jnp.arange(4, dtype=jnp.int32) // 2, jnp.zeros((2, 3))
  run = jax.jit(
    lambda v, w: overlap_mean(v, ids, w, old, implementation=implementation)
  )
  mean = run(values.at[0, 1].set(jnp.nan), weights)
  np.testing.assert_array_equal(mean, [[1, np.nan, 1], [1, 1, 1]])
  mean = run(values, weights.at[3].set(jnp.nan))
  np.testing.assert_array_equal(mean, [[1, 1, 1], [np.nan] * 3])


@pytest.mark.parametrize("implementation", [None, "xla", "interpret"])
def test_chunks_add_up(interpreter, implementation):
  values, ids, weights, old = entries(5, 33, 40)
  chunks = [
    overlap_sums(
      values[part],
      ids[part],
      weights[part],
      rows=5,
      implementation=implementation,
    )
    for part in (slice(0, 7), slice(7, 7), slice(7, 40))
  ]
  sums = jax.tree.map(lambda *parts: sum(parts), *chunks)
  assert (sums.total.shape, sums.held.shape) == ((5, 33), (5,))
  np.testing.assert_allclose(
    finish_overlap(sums, old), oracle(values, ids, weights, old), **CLOSE
  )


def test_vmap(interpreter):
  runs = [entries(5, 9, 20, seed) for seed in range(3)]
  batch = [np.stack(arrays) for arrays in zip(*runs, strict=True)]
  expected = np.stack([oracle(*run) for run in runs])
  for implementation in (None, "xla", "interpret"):

    def mean(*args, implementation=implementation):
      return overlap_mean(*args, implementation=implementation)

    both = jax.jit(jax.vmap(mean))(*batch)
    np.testing.assert_allclose(both, expected, **CLOSE)
    weights = jax.vmap(mean, (None, None, 0, None))(
      runs[0][0], runs[0][1], batch[2] * ~np.isnan(runs[0][0][:, 0]), runs[0][3]
    )
    assert weights.shape == (3, 5, 9) and np.isfinite(weights).all()


def test_shard_map():
  """Entries over 8 devices: local sums, then psum."""
  assert jax.device_count() >= 8, "tests/conftest.py gives 8 CPU devices"
  values, ids, weights, old = entries(6, 10, 8 * 9)
  mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))

  def local(values, ids, weights, old):
    sums = overlap_sums(values, ids, weights, rows=6)
    return finish_overlap(jax.lax.psum(sums, "clients"), old)

  data = P("clients")
  sharded = jax.shard_map(
    local, mesh=mesh, in_specs=(data, data, data, P()), out_specs=P()
  )
  mean = jax.jit(sharded)(values, ids, weights, old)
  np.testing.assert_allclose(mean, oracle(values, ids, weights, old), **CLOSE)


def test_columns_over_devices():
  values, ids, weights, old = entries(6, 8 * 3, 30)
  mesh = jax.make_mesh((8,), ("columns",), axis_types=(AxisType.Auto,))
  columns = P(None, "columns")
  sharded = jax.shard_map(
    overlap_mean,
    mesh=mesh,
    in_specs=(columns, P(), P(), columns),
    out_specs=columns,
  )
  np.testing.assert_array_equal(
    jax.jit(sharded)(values, ids, weights, old),
    overlap_mean(values, ids, weights, old),
  )


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_grad(implementation):
  """Against the derivatives on paper, at a weight of 0 that says NaN, too."""
  values, ids, weights, old = entries(5, 7, 30)
  weights[4], values[4], ids[4] = 0, 2.5, 3  # a finite value of weight 0
  weights[5], values[5], ids[5] = 0, np.nan, 3
  cotangent = np.random.default_rng(1).standard_normal((5, 7))
  mean = oracle(values, ids, weights, old)

  def loss(values, weights, old):
    mean = overlap_mean(
      values, ids, weights, old, implementation=implementation
    )
    return (mean * jnp.asarray(cotangent, jnp.float32)).sum()

  got = jax.jit(jax.grad(loss, (0, 1, 2)))(values, jnp.asarray(weights), old)
  held = np.array([np.float64(weights)[ids == r].sum() for r in range(5)])
  by_values, by_weights = np.zeros((30, 7)), np.zeros(30)
  for t, r in enumerate(ids):
    if 0 <= r < 5 and held[r] > 0:
      by_values[t] = weights[t] / held[r] * cotangent[r]
      if np.isfinite(values[t]).all():
        by_weights[t] = (values[t] - mean[r]) @ cotangent[r] / held[r]
      else:  # taken as 0
        by_weights[t] = -mean[r] @ cotangent[r] / held[r]
  by_old = np.where((held == 0)[:, None], cotangent, 0)
  for one, expected in zip(got, (by_values, by_weights, by_old), strict=True):
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)


def test_forward_derivative_is_the_scatter():
  """What other platforms compute: linear, so at the values it is the sum."""
  values, ids, weights, _ = entries(5, 7, 30)
  values = np.nan_to_num(values)
  total, tangent = jax.jvp(
    lambda v: overlap_sums(v, ids, weights, rows=5).total, (values,), (values,)
  )
  np.testing.assert_allclose(total, tangent, **CLOSE)


VALUES = np.ones((3, 2), np.float32)
IDS = np.zeros(3, np.int32)
WEIGHTS = np.ones(3, np.float32)
OLD = np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
  "args, options, message",
  [
    ((VALUES.astype(int), IDS, WEIGHTS, OLD), {}, "values must be float16"),
    ((VALUES, IDS, WEIGHTS, OLD.astype(int)), {}, "old must be float16"),
    ((VALUES, IDS, WEIGHTS, OLD[0, 0]), {}, "not a scalar"),
    ((VALUES[:, :1], IDS, WEIGHTS, OLD), {}, r"shape \[2\] need values"),
    ((VALUES, IDS[:2], WEIGHTS, OLD), {}, r"3 entries need ids \[3\]"),
    ((VALUES, IDS.astype(np.uint8), WEIGHTS, OLD), {}, "ids must be int32"),
    ((VALUES, IDS, WEIGHTS[:2], OLD), {}, r"must be float32\[3\]"),
    ((VALUES, IDS, IDS, OLD), {}, "weights must be float32"),
    ((VALUES, IDS, -WEIGHTS, OLD), {}, "not negative"),
    ((VALUES, IDS, np.nan * WEIGHTS, OLD), {}, "finite"),
    ((VALUES, IDS, WEIGHTS, OLD), {"index": row_index(IDS, 3)}, "and 3 rows"),
    ((VALUES, IDS, WEIGHTS, OLD), {"implementation": "xIa"}, "allowed are"),
  ],
)
def test_wrong_arguments(args, options, message):
  with pytest.raises(ValueError, match=message):
    overlap_mean(*args, **options)


def test_triton_needs_cuda():
  with pytest.raises(NotImplementedError, match="needs a CUDA device"):
    overlap_mean(VALUES, IDS, WEIGHTS, OLD, implementation="triton")


def compiled(variant, spec):
  prepare, run = variant
  shapes = jax.eval_shape(prepare, *jax.eval_shape(lambda: specs.inputs(spec)))
  return jax.jit(run).lower(*shapes).compile()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA:CPU's plan")
def test_memory_is_that_of_the_layer():
  spec = specs.Spec("memory", 50, 256, 512)
  temp = compiled(rivals.variants(spec)["ours"], spec)
  temp = temp.memory_analysis().temp_size_in_bytes
  layer = 4 * spec.rows * spec.columns
  assert temp <= 1.5 * layer + 2**20


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="guards XLA:CPU")
@pytest.mark.slow
def test_loop_is_quick():
  """0.4 ns a value against 2.4 of the padded form, and no copies."""
  spec = specs.Spec("guard", 40, 256, 512)
  variants, arrays = rivals.variants(spec), specs.inputs(spec)

  def seconds(name):
    run = compiled(variants[name], spec)
    args = jax.block_until_ready(jax.jit(variants[name][0])(*arrays))
    times = []
    for _ in range(5):
      start = time.process_time()
      jax.block_until_ready(run(*args))
      times.append(time.process_time() - start)
    return min(times)

  assert seconds("ours") < seconds("padded dense, mask") / 2
