"""Votes: XLA path against float64 loops, exactness, transformations, cost."""

import functools
import time

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import fedjax_het_kernels as kernels
from fedjax_het_kernels.sign_votes import reference, rivals, specs

SPECS = [
  pytest.param(spec, id=spec.name)
  for spec in specs.SPECS
  if not (spec.bench or spec.gpu)
]


def case(pack_planar, clients, size, seed=0, dtype=np.int32):
  """Signs f64[N, P], their words, and weights some of which are 0."""
  rng = np.random.default_rng(seed)
  bits = rng.random((clients, size)) < 0.5
  weights = (rng.integers(0, 1000, clients)).astype(dtype)
  if dtype == np.float32:
    weights *= rng.random(clients, np.float32)
  return 2.0 * bits - 1.0, pack_planar(bits), weights


def oracle(signs, weights):
  """sum_n w_n s_np, one number at a time."""
  votes = np.zeros(signs.shape[1])
  for p in range(signs.shape[1]):
    for n in range(signs.shape[0]):
      votes[p] += float(weights[n]) * signs[n, p]
  return votes


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("output", ["mean", "sum", "majority"])
def test_against_reference(spec, output):
  words, weights = specs.inputs(spec)
  expected = reference.sign_votes(words, weights, size=spec.size, output=output)
  votes = kernels.sign_votes(words, weights, size=spec.size, output=output)
  assert votes.shape == expected.shape
  if output == "majority":
    assert votes.dtype == jnp.uint32
    np.testing.assert_array_equal(votes, expected)
  elif output == "sum" and spec.weights in ("equal", "int"):
    assert votes.dtype == jnp.int32
    np.testing.assert_array_equal(votes, expected)
  else:
    assert votes.dtype == jnp.float32
    np.testing.assert_allclose(votes, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
  clients=st.integers(0, 35),
  size=st.integers(0, 260),
  seed=st.integers(0, 2**32 - 1),
  dtype=st.sampled_from([np.int32, np.float32]),
)
def test_against_loops(pack_planar, clients, size, seed, dtype):
  signs, words, weights = case(pack_planar, clients, size, seed, dtype)
  expected = oracle(signs, weights)
  total = float(weights.sum(dtype=np.float64))

  @jax.jit
  def sum_and_mean(words, weights):
    votes = kernels.sign_votes(words, weights, size=size, output="sum")
    return votes, kernels.sign_votes(words, weights, size=size)

  votes, mean = sum_and_mean(words, weights)
  np.testing.assert_allclose(votes, expected, rtol=0, atol=1e-6 * total)
  if dtype == np.int32:
    np.testing.assert_array_equal(votes, expected)
  np.testing.assert_allclose(mean, expected / (total or 1), rtol=0, atol=1e-6)
  by_reference = reference.sign_votes(words, weights, size=size)
  np.testing.assert_allclose(by_reference, expected / (total or 1), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_order_and_chunks_change_no_bit(pack_planar, dtype):
  """Sums of whole numbers are exact, in float32 too."""
  size = 4100
  signs, words, weights = case(pack_planar, 30, size)
  expected = (weights @ signs).astype(dtype)
  weights = weights.astype(dtype)
  order = np.random.default_rng(1).permutation(30)

  @functools.partial(jax.jit, static_argnums=2)
  def in_chunks(words, weights, chunk):
    chunks = (
      words.reshape(-1, chunk, words.shape[1]),
      weights.reshape(-1, chunk),
    )
    return jax.lax.scan(
      lambda votes, chunk: (kernels.accumulate_votes(votes, *chunk), None),
      jnp.zeros(size, dtype),
      chunks,
    )[0]

  for chunk in (1, 2, 10, 15, 30):
    for rows in (np.arange(30), order):
      votes = in_chunks(words[rows], weights[rows], chunk)
      np.testing.assert_array_equal(votes, expected)


def test_integers_up_to_the_bound(pack_planar):
  signs = np.array([[1, 1, -1, -1], [1, -1, 1, -1]])
  weights = np.array([2**30, 2**30 - 1], np.int32)
  words = pack_planar(signs > 0)
  votes = kernels.sign_votes(words, weights, size=4, output="sum")
  assert votes.tolist() == [2**31 - 1, 1, -1, 1 - 2**31]
  assert kernels.sign_votes(words, weights, size=4).tolist()[::3] == [1, -1]
  with pytest.raises(ValueError, match="2147483648"):
    kernels.sign_votes(words, weights + [0, 1], size=4)


def test_all_equal_and_one_client(pack_planar):
  _, words, _ = case(pack_planar, 1, 77)
  signs = kernels.unpack_signs(words[0], 77)
  np.testing.assert_array_equal(kernels.sign_votes(words, size=77), signs)
  weights = np.random.default_rng(0).random(1001, np.float32)
  mean = kernels.sign_votes(np.repeat(words, 1001, 0), weights, size=77)
  assert np.abs(mean).max() <= 1
  np.testing.assert_allclose(mean, signs, atol=1e-5)


def test_padding_is_ignored_and_ties_are_plus(pack_planar):
  words = pack_planar(np.array([[1, 1, 0], [1, 0, 0]]))
  dirty = words | ~pack_planar(np.ones((2, 3)))
  for output in ("mean", "sum", "majority"):
    np.testing.assert_array_equal(
      kernels.sign_votes(dirty, size=3, output=output),
      kernels.sign_votes(words, size=3, output=output),
    )
  majority = kernels.sign_votes(dirty, size=3, output="majority")
  np.testing.assert_array_equal(majority, pack_planar(np.array([1, 1, 0])))


def test_nan_weight_is_not_hidden(pack_planar):
  _, words, _ = case(pack_planar, 9, 50)
  weights = jnp.ones(9).at[3].set(jnp.nan)
  mean = jax.jit(lambda w: kernels.sign_votes(words, w, size=50))(weights)
  assert np.isnan(mean).all()
  with pytest.raises(ValueError, match="finite"):
    kernels.sign_votes(words, weights, size=50)


def test_vmap(pack_planar):
  runs = [case(pack_planar, 11, 4200, seed) for seed in range(3)]
  words = np.stack([run[1] for run in runs])
  weights = np.stack([run[2] for run in runs])

  def votes(words, weights):
    return kernels.sign_votes(words, weights, size=4200)

  both = jax.jit(jax.vmap(votes))(words, weights)
  only_words = jax.vmap(votes, (0, None))(words, weights[0])
  only_weights = jax.vmap(votes, (None, 0))(words[0], weights)
  for s in range(3):
    np.testing.assert_array_equal(both[s], votes(words[s], weights[s]))
    np.testing.assert_array_equal(only_words[s], votes(words[s], weights[0]))
    np.testing.assert_array_equal(only_weights[s], votes(words[0], weights[s]))


def test_keep_and_several_weightings(pack_planar):
  signs, words, weights = case(pack_planar, 13, 4200, dtype=np.float32)
  kept = np.random.default_rng(4).random(4200) < 0.3
  keep = pack_planar(kept)
  mean = kernels.sign_votes(words, weights, size=4200, keep=keep)
  np.testing.assert_allclose(
    mean, np.where(kept, oracle(signs, weights) / weights.sum(), 0), atol=1e-6
  )
  majority = kernels.sign_votes(
    words, weights, size=4200, keep=keep, output="majority"
  )
  np.testing.assert_array_equal(
    majority, pack_planar(kept & (oracle(signs, weights) >= 0))
  )
  several = np.stack([weights, weights[::-1], np.zeros_like(weights)])
  total = weights.sum(dtype=np.float64)
  sums = kernels.sign_votes(words, several, size=4200, output="sum")
  for row, one in zip(sums, several, strict=True):
    np.testing.assert_allclose(row, oracle(signs, one), atol=1e-6 * total)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_small_integers_are_exact(pack_planar, dtype):
  signs, words, _ = case(pack_planar, 21, 300)
  weights = np.random.default_rng(5).integers(0, np.iinfo(dtype).max, 21)
  votes = kernels.sign_votes(
    words, weights.astype(dtype), size=300, output="sum"
  )
  np.testing.assert_array_equal(votes, oracle(signs, weights))


def test_step(pack_planar):
  signs, words, weights = case(pack_planar, 6, 130)
  scores = np.random.default_rng(6).normal(size=130).astype(np.float32)
  new, packed = kernels.vote_step(scores, words, weights, learning_rate=0.5)
  expected = scores + 0.5 * oracle(signs, weights) / weights.sum()
  np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(packed, pack_planar(np.asarray(new) >= 0))
  with pytest.raises(ValueError, match=r"float32\[P\], not int32"):
    kernels.vote_step(jnp.arange(130), words, learning_rate=0.5)
  with pytest.raises(ValueError, match=r"weights must be \[N\]"):
    kernels.vote_step(scores, words, weights[None], learning_rate=0.5)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_shard_map(pack_planar, dtype):
  """Clients over 8 devices: local sums, then psum."""
  assert jax.device_count() >= 8, "tests/conftest.py gives 8 CPU devices"
  size = 5000
  signs, words, weights = case(pack_planar, 8 * 9, size, dtype=dtype)
  mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))

  def votes(words, weights):
    def step(sums, chunk):  # [3, W], [3]
      return kernels.accumulate_votes(sums, *chunk), None

    sums = kernels.accumulate_votes(
      jnp.zeros(size, dtype), words[:3], weights[:3]
    )
    chunks = words[3:].reshape(2, 3, -1), weights[3:].reshape(2, 3)
    sums, _ = jax.lax.scan(step, sums, chunks)
    sums, total = jax.lax.psum((sums, weights.sum(dtype=dtype)), "clients")
    return kernels.finish_votes(sums, total)

  sharded = jax.shard_map(
    votes, mesh=mesh, in_specs=(P("clients"), P("clients")), out_specs=P()
  )
  mean = jax.jit(sharded)(words, weights)
  alone = kernels.sign_votes(words, weights, size=size)
  if dtype == np.int32:
    np.testing.assert_array_equal(mean, alone)
  np.testing.assert_allclose(mean, alone, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    mean, np.float64(weights) @ signs / weights.sum(), atol=1e-6
  )


def test_parameters_over_devices(pack_planar):
  """Words over 8 devices: every device finishes its own parameters."""
  _, words, weights = case(pack_planar, 5, 8 * 4096)
  mesh = jax.make_mesh((8,), ("words",), axis_types=(AxisType.Auto,))
  sharded = jax.shard_map(
    lambda words: kernels.sign_votes(words, jnp.asarray(weights), size=4096),
    mesh=mesh,
    in_specs=P(None, "words"),
    out_specs=P("words"),
  )
  np.testing.assert_array_equal(
    sharded(words), kernels.sign_votes(words, weights, size=8 * 4096)
  )


WORDS = np.zeros((3, 128), np.uint32)
ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
  "words, weights, options, message",
  [
    (WORDS[0], None, {}, r"\[N, W\]"),
    (WORDS.astype(np.int32), None, {}, "must be uint32"),
    (WORDS, None, {"size": 4097}, "do not hold 4097 signs"),
    (
      WORDS,
      ONES[:2],
      {},
      r"3 clients need weights \[3\] or \[K, 3\], not \[2\]",
    ),
    (WORDS, ONES[None, None], {}, r"need weights \[3\]"),
    (WORDS, ONES.astype(np.float16), {}, "int32 or float32, not float16"),
    (WORDS, None, {"keep": WORDS}, r"keep must be \[W\]"),
    (WORDS, None, {"keep": WORDS[0, :9]}, "keep: words .* do not hold 5"),
    (WORDS, -ONES, {}, "not negative"),
    (WORDS, None, {"output": "median"}, "'mean', 'sum', 'majority'"),
    (WORDS, None, {"implementation": "xIa"}, "allowed are None and 'xla'"),
  ],
)
def test_wrong_arguments(words, weights, options, message):
  with pytest.raises(ValueError, match=message):
    kernels.sign_votes(words, weights, **{"size": 5, **options})


def test_sums_and_weights_have_one_dtype():
  with pytest.raises(ValueError, match=r"need weights int32\[3\]"):
    kernels.accumulate_votes(jnp.zeros(5, jnp.int32), WORDS, ONES)
  with pytest.raises(ValueError, match="votes must be"):
    kernels.accumulate_votes(jnp.zeros(5, jnp.float16), WORDS)


def test_memory_does_not_grow_with_clients():
  spec = next(spec for spec in specs.SPECS if spec.name == "million")
  shapes = (
    jax.ShapeDtypeStruct(
      (spec.clients, kernels.num_words(spec.size)), "uint32"
    ),
    jax.ShapeDtypeStruct((spec.clients,), "int32"),
  )
  _, ours = rivals.variants(spec)["ours"]
  memory = jax.jit(ours).lower(*shapes).compile().memory_analysis()
  assert memory.temp_size_in_bytes <= 8 * 2**20


@pytest.mark.slow  # it measures, if only a ratio of CPU times
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="guards XLA:CPU")
@pytest.mark.parametrize("chunk", [1, 2, 8, 10, 64])
def test_loop_is_vectorised(chunk):
  """In a scan over chunks of any length: see sign_votes/xla.py for the trap.

  Vectorised it takes 0.1 to 0.4 ns of CPU a vote, scalar code 4 to 5 ns;
  unpacking to float signs and a matrix product takes 2 to 4 ns.
  """
  spec = specs.Spec("guard", 64 // chunk * chunk, 2**18, "float")
  words, weights = map(jnp.asarray, specs.inputs(spec))

  @jax.jit
  def ours(words, weights):
    chunks = (
      words.reshape(-1, chunk, words.shape[1]),
      weights.reshape(-1, chunk),
    )
    return jax.lax.scan(
      lambda sums, chunk: (kernels.accumulate_votes(sums, *chunk), None),
      jnp.zeros(spec.size),
      chunks,
    )[0]

  def seconds(function):
    jax.block_until_ready(function(words, weights))
    times = []
    for _ in range(5):
      start = time.process_time()
      jax.block_until_ready(function(words, weights))
      times.append(time.process_time() - start)
    return min(times)

  _, einsum = rivals.variants(spec)["unpack, einsum"]
  assert seconds(ours) < seconds(jax.jit(einsum)) / 2
