"""Sparse sums: float64 loops, reproducible bits, transformations, cost."""

import itertools
import time
from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fedjax_het_kernels.sparse_sum import reference, rivals, specs, xla
from fedjax_het_kernels.sparse_sum.op import (
  finish_fixed,
  fixed_scale,
  sparse_sum,
  sparse_sum_fixed,
)

SPECS = [
  pytest.param(spec, id=spec.name)
  for spec in specs.SPECS
  if not spec.bench and not spec.gpu
]
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def oracle(index, value, weight, size):
  """One entry at a time, in Python floats."""
  total = [0.0] * size
  for n in range(len(index)):
    w = 1.0 if weight is None else float(weight[n])
    for p, v in zip(index[n].tolist(), value[n].tolist(), strict=True):
      if 0 <= p < size and w != 0:
        total[p] += w * v
  return np.array(total)


def case(clients, entries, size, seed=0, dtype=np.float32):
  """Repeated indices, padding, and clients of weight 0 that say NaN."""
  rng = np.random.default_rng(seed)
  index = rng.integers(-3, size + 3, (clients, entries)).astype(np.int32)
  value = rng.standard_normal((clients, entries)).astype(dtype)
  weight = rng.standard_normal(clients).astype(np.float32)
  silent = rng.random(clients) < 0.2
  weight[silent], value[silent] = 0, np.nan
  return index, value, weight


def bits(array):
  return np.asarray(array).view(np.uint32)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("implementation", [None, "xla", "interpret"])
@pytest.mark.parametrize("spec", SPECS)
def test_against_reference(interpreter, spec, implementation, deterministic):
  args = specs.inputs(spec)
  total = sparse_sum(
    *args,
    size=spec.size,
    deterministic=deterministic,
    implementation=implementation,
  )
  assert (total.shape, total.dtype) == ((spec.size,), jnp.float32)
  expected = reference.sparse_sum(*args, size=spec.size)
  np.testing.assert_allclose(total, expected, **CLOSE)


@settings(max_examples=12, deadline=None)
@given(
  clients=st.integers(0, 6),
  entries=st.integers(0, 9),
  size=st.integers(0, 12),
  weighted=st.booleans(),
  deterministic=st.booleans(),
  seed=st.integers(0, 2**32 - 1),
)
def test_against_loops(clients, entries, size, weighted, deterministic, seed):
  index, value, weight = case(clients, entries, size, seed)
  if not weighted:
    value, weight = np.nan_to_num(value), None
  expected = oracle(index, value, weight, size)
  total = jax.jit(sparse_sum, static_argnames=("size", "deterministic"))(
    index, value, weight, size=size, deterministic=deterministic
  )
  np.testing.assert_allclose(total, expected, **CLOSE)
  np.testing.assert_allclose(
    reference.sparse_sum(index, value, weight, size=size), expected, atol=1e-12
  )


@pytest.mark.parametrize("implementation", [None, "interpret"])
def test_half_precision(interpreter, implementation):
  """Products and sums are float32."""
  args = case(4, 60, 20, dtype=np.float16)
  total = sparse_sum(*args, size=20, implementation=implementation)
  np.testing.assert_allclose(total, oracle(*args, 20), **CLOSE)


# -- the deterministic sum


def exact(index, value, weight, size, scale):
  """The definition in integers: terms rounded to multiples of 1 / scale."""
  total = [0] * size
  for n in range(len(index)):
    for p, v in zip(index[n].tolist(), value[n], strict=True):
      term = np.float32(weight[n]) * np.float32(v)
      if 0 <= p < size:
        total[p] += round(Fraction(float(term)) * Fraction(float(scale)))
  return total


def wide(clients=6, entries=30, size=8, seed=0):
  """Terms of very different sizes, which float32 cannot add exactly."""
  rng = np.random.default_rng(seed)
  index = rng.integers(-1, size + 1, (clients, entries)).astype(np.int32)
  value = rng.standard_normal((clients, entries), np.float32)
  value *= np.float32(2) ** rng.integers(-40, 20, value.shape)
  return index, value, rng.random(clients, np.float32)


@pytest.mark.parametrize("implementation", [None, "xla", "interpret"])
def test_digits_are_the_integer_sum(interpreter, implementation):
  index, value, weight = wide()
  scale = fixed_scale(jnp.abs(weight[:, None] * value).max(), value.size)
  sums = sparse_sum_fixed(
    index, value, weight, size=8, scale=scale, implementation=implementation
  )
  expected = exact(index, value, weight, 8, scale)
  high, middle, low = np.asarray(sums.digits).astype(object)
  assert (high * 2**22 + middle * 2**11 + low).tolist() == expected
  assert sums.bad.tolist() == [0]
  total = np.float64(finish_fixed(sums, scale))
  ideal = np.array(
    [float(Fraction(e) / Fraction(float(scale))) for e in expected]
  )
  assert (np.abs(total - ideal) <= np.abs(ideal) * 2.0**-23).all()


def test_order_chunks_and_implementation_change_no_bit(interpreter):
  index, value, weight = wide(12, 33, 9)
  scale = fixed_scale(np.abs(weight[:, None] * value).max(), value.size)

  def total(order, chunks, implementation):
    parts = [
      sparse_sum_fixed(
        index[part],
        value[part],
        weight[part],
        size=9,
        scale=scale,
        implementation=implementation,
      )
      for part in np.array_split(order, chunks)
    ]
    return bits(finish_fixed(jax.tree.map(lambda *x: sum(x), *parts), scale))

  rng = np.random.default_rng(1)
  at_once = bits(sparse_sum(index, value, weight, size=9, deterministic=True))
  floats = set()
  for chunks, implementation in itertools.product(
    (1, 5, 12), ("xla", "interpret")
  ):
    order = rng.permutation(12)
    np.testing.assert_array_equal(total(order, chunks, implementation), at_once)
  for _ in range(20):  # float32 sums do depend on the order
    order = rng.permutation(12)
    floats.add(
      bits(
        sparse_sum(index[order], value[order], weight[order], size=9)
      ).tobytes()
    )
  assert len(floats) > 1


def test_digits_do_not_overflow(monkeypatch):
  """All entries on one parameter, each of the largest size, several carries."""
  monkeypatch.setattr(xla, "ENTRIES", 1000)
  count = 50_000
  index, value = (
    np.zeros((10, count // 10), np.int32),
    np.ones((10, count // 10)),
  )
  for sign in (1, -1):
    terms = (sign * value * 0.99999).astype(np.float32)
    total = sparse_sum(index, terms, size=2, deterministic=True)
    expected = count * float(terms[0, 0])
    np.testing.assert_allclose(total, [expected, 0], rtol=2.0**-22)


def test_groups_cover_every_entry_once(monkeypatch):
  monkeypatch.setattr(xla, "ENTRIES", 7)  # the last group begins early
  for clients, entries in ((1, 8), (3, 20)):
    args = case(clients, entries, 5)
    total = sparse_sum(*args, size=5, deterministic=True)
    np.testing.assert_allclose(total, oracle(*args, 5), **CLOSE)


@pytest.mark.parametrize("largest", [3e-38, 1e-10, 1.0, 1.5, 2.0, 1e30, 3e38])
@pytest.mark.parametrize("entries", [1, 2, 3, 1000, 10**7])
def test_scale_is_the_largest_that_is_safe(largest, entries):
  scale = float(fixed_scale(jnp.float32(largest), entries))
  assert np.log2(scale) == round(np.log2(scale))
  total = float(np.float32(largest)) * entries * scale
  assert total <= 2.0**52
  assert total > 2.0**50 or scale == 2.0**126


@pytest.mark.parametrize("implementation", [None, "interpret"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_wrong_values_show(interpreter, implementation, wrong):
  index, value, weight = wide()
  value[2, 3], index[2, 3] = wrong, 5
  run = jax.jit(
    lambda index, value: sparse_sum(
      index,
      value,
      weight,
      size=8,
      deterministic=True,
      implementation=implementation,
    )
  )
  assert np.isnan(run(index, value)).all()
  index[2, 3] = -1  # padding says nothing
  assert np.isfinite(run(index, value)).all()


@pytest.mark.parametrize("implementation", [None, "interpret"])
def test_too_large_for_the_scale_shows(interpreter, implementation):
  sums = sparse_sum_fixed(
    np.zeros((1, 3), np.int32),
    np.array([[1, 2, 3]], np.float32),
    size=2,
    scale=jnp.float32(2.0**51),
    implementation=implementation,
  )
  assert sums.bad.tolist() == [1]
  assert np.isnan(finish_fixed(sums, jnp.float32(2.0**51))).all()


def test_subnormal_terms_are_zero(interpreter):
  """Devices differ on them."""
  for implementation in (None, "interpret"):
    total = sparse_sum(
      np.array([[0, 1]], np.int32),
      np.array([[1e-38, 2.4e-38]], np.float32),
      size=2,
      deterministic=True,
      scale=jnp.float32(2.0**126),
      implementation=implementation,
    )
    np.testing.assert_allclose(total, [0, 2.0**-125], rtol=1e-6)


# -- transformations


@pytest.mark.parametrize("deterministic", [False, True])
def test_vmap(interpreter, deterministic):
  runs = [case(4, 9, 12, seed) for seed in range(3)]
  batch = [np.stack(arrays) for arrays in zip(*runs, strict=True)]
  expected = np.stack([oracle(*run, 12) for run in runs])
  for implementation in (None, "xla", "interpret"):
    total = jax.jit(
      jax.vmap(
        lambda *args, implementation=implementation: sparse_sum(
          *args,
          size=12,
          deterministic=deterministic,
          implementation=implementation,
        )
      )
    )(*batch)
    np.testing.assert_allclose(total, expected, **CLOSE)


@pytest.mark.parametrize("deterministic", [False, True])
def test_shard_map(deterministic):
  """Clients over 8 devices; the deterministic sum has the bits of one."""
  assert jax.device_count() >= 8, "tests/conftest.py gives 8 CPU devices"
  index, value, weight = args = wide(16, 20, 9)
  mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))

  def local(index, value, weight):
    if not deterministic:
      return jax.lax.psum(sparse_sum(index, value, weight, size=9), "clients")
    largest = jnp.abs(weight[:, None] * value).max()
    scale = fixed_scale(jax.lax.pmax(largest, "clients"), 16 * 20)
    sums = sparse_sum_fixed(index, value, weight, size=9, scale=scale)
    return finish_fixed(jax.lax.psum(sums, "clients"), scale)

  data = P("clients")
  total = jax.jit(
    jax.shard_map(local, mesh=mesh, in_specs=(data,) * 3, out_specs=P())
  )(*args)
  np.testing.assert_allclose(total, oracle(*args, 9), rtol=1e-5, atol=1e-2)
  if deterministic:
    alone = sparse_sum(
      *args,
      size=9,
      deterministic=True,
      scale=fixed_scale(np.abs(weight[:, None] * value).max(), 16 * 20),
    )
    np.testing.assert_array_equal(bits(total), bits(alone))


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_derivatives(implementation, deterministic):
  """Against the derivatives on paper: gathers of the cotangent."""
  index, value, weight = case(6, 7, 9)
  value[1], weight[1] = 0.5, 0  # finite and of weight 0: its derivative is not
  cotangent = np.random.default_rng(1).standard_normal(9)

  def total(value, weight):
    return sparse_sum(
      index,
      value,
      weight,
      size=9,
      deterministic=deterministic,
      implementation=implementation,
    )

  def loss(value, weight):
    return (total(value, weight) * jnp.asarray(cotangent, jnp.float32)).sum()

  got = jax.jit(jax.grad(loss, (0, 1)))(value, jnp.asarray(weight))
  inside = (index >= 0) & (index < 9)
  picked = np.where(inside, cotangent[np.clip(index, 0, 8)], 0)
  np.testing.assert_allclose(got[0], weight[:, None] * picked, **CLOSE)
  expected = (np.nan_to_num(value) * picked).sum(axis=1)
  np.testing.assert_allclose(got[1], expected, **CLOSE)
  finite = np.nan_to_num(value)
  out, tangent = jax.jvp(lambda v: total(v, weight), (finite,), (finite,))
  np.testing.assert_allclose(out, tangent, **CLOSE)


# -- arguments and cost

INDEX, VALUE = np.zeros((2, 3), np.int32), np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
  "args, options, message",
  [
    ((INDEX[0], VALUE[0]), {}, r"index must be int32\[N, k\]"),
    ((INDEX.astype(np.uint8), VALUE), {}, "index must be int32"),
    ((INDEX, VALUE[:, :2]), {}, r"value must be .*\[2, 3\]"),
    ((INDEX, INDEX), {}, "value must be float16"),
    ((INDEX, VALUE, VALUE[0]), {}, r"weight must be float32\[2\]"),
    ((INDEX, VALUE), {"size": -1}, "size -1"),
    ((INDEX, VALUE), {"size": 2**31}, r"below 2\^31"),
    ((INDEX, VALUE), {"scale": jnp.float32(1)}, "deterministic=True"),
    (
      (INDEX, VALUE),
      {"scale": np.ones(2, np.float32), "deterministic": True},
      "scale must be a float32 scalar",
    ),
    ((INDEX, VALUE), {"implementation": "xIa"}, "allowed are"),
  ],
)
def test_wrong_arguments(args, options, message):
  with pytest.raises(ValueError, match=message):
    sparse_sum(*args, **{"size": 5, **options})


def test_wrong_scale():
  with pytest.raises(ValueError, match="largest must be a float32 scalar"):
    fixed_scale(np.ones(2, np.float32), 3)


def test_bfloat16_is_not_interpreted(interpreter):
  value = jnp.ones((2, 3), jnp.bfloat16)
  assert sparse_sum(INDEX, value, size=1).tolist() == [6]
  with pytest.raises(ValueError, match="bfloat16"):
    sparse_sum(INDEX, value, size=1, implementation="interpret")


def test_memory_does_not_grow_with_clients():
  spec = specs.Spec("memory", 1000, 1000, 100_000)
  shapes = jax.eval_shape(lambda: specs.inputs(spec))
  for name, most in {"ours": 2**20, "ours, deterministic": 24 * 2**20}.items():
    _, run = rivals.variants(spec)[name]
    memory = jax.jit(run).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= most


@pytest.mark.slow  # it measures, if only a ratio of CPU times
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="guards XLA:CPU")
def test_quicker_than_dense():
  spec = specs.Spec("guard", 100, 2000, 200_000)
  arrays = specs.inputs(spec)

  def seconds(name):
    prepare, run = rivals.variants(spec)[name]
    args = jax.block_until_ready(jax.jit(prepare)(*arrays))
    run = jax.jit(run).lower(*args).compile()
    times = []
    for _ in range(5):
      start = time.process_time()
      jax.block_until_ready(run(*args))
      times.append(time.process_time() - start)
    return min(times)

  dense = seconds("densify")
  assert seconds("ours") < dense / 10
  assert seconds("ours, deterministic") < dense / 2
