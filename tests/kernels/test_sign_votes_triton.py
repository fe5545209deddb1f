"""The Triton kernels of sign_votes, interpreted, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_het_kernels as kernels
from fedjax_het_kernels.sign_votes import launch, reference

WEIGHTS = {
  "none": None,
  "uint8": (np.uint8, 256),
  "uint16": (np.uint16, 65536),
  "int32": (np.int32, 2**20),
  "float32": (np.float32, None),
}


def case(kind, clients, size, rows=None, seed=0):
  """Words, weights [N] or [rows, N], keep mask."""
  rng = np.random.default_rng(seed)
  count = kernels.num_words(size)
  words = rng.integers(0, 2**32, (clients, count), dtype=np.uint32)
  keep = rng.integers(0, 2**32, count, dtype=np.uint32)
  if WEIGHTS[kind] is None:
    return words, None, keep
  dtype, below = WEIGHTS[kind]
  shape = (clients,) if rows is None else (rows, clients)
  weights = (
    rng.random(shape, np.float32)
    if below is None
    else rng.integers(0, below, shape).astype(dtype)
  )
  return words, weights, keep


def check(words, weights, keep, size, output):
  got = kernels.sign_votes(
    words,
    weights,
    size=size,
    keep=keep,
    output=output,
    implementation="interpret",
  )
  expected = reference.sign_votes(
    words, weights, size=size, keep=keep, output=output
  )
  exact = weights is None or weights.dtype.kind in "iu"
  if output == "majority" or (output == "sum" and exact):
    np.testing.assert_array_equal(got, expected)
  else:
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output", ["mean", "sum", "majority"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_against_reference(interpreter, kind, output):
  """Neither clients nor parameters fill their last block."""
  words, weights, keep = case(kind, 11, 4500)
  check(words, weights, keep, 4500, output)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("clients", [1, 8])
def test_few_clients(interpreter, kind, clients):
  words, weights, _ = case(kind, clients, 40)
  check(words, weights, None, 40, "mean")


def test_more_clients_than_a_chunk(interpreter):
  """Counts of several chunks of planes add up."""
  words, _, keep = case("none", 2 * launch.CHUNK + 3, 100)
  check(words, None, keep, 100, "sum")


@pytest.mark.parametrize("kind, rows", [("int32", 2), ("float32", 5)])
@pytest.mark.parametrize("output", ["mean", "majority"])
def test_several_weightings(interpreter, kind, rows, output):
  words, weights, keep = case(kind, 37, 300, rows)
  check(words, weights, keep, 300, output)


def test_all_pruned_and_no_weight(interpreter):
  words, weights, keep = case("float32", 5, 60)
  check(words, weights, np.zeros_like(keep), 60, "mean")
  check(words, 0 * weights, None, 60, "mean")
  check(words, np.zeros(5, np.uint8), keep, 60, "mean")


def test_nan_weight_is_not_hidden(interpreter):
  words, weights, _ = case("float32", 5, 60)
  mean = jax.jit(
    lambda w: kernels.sign_votes(words, w, size=60, implementation="interpret")
  )(jnp.asarray(weights).at[2].set(jnp.nan))
  assert np.isnan(mean).all()


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("implementation", ["xla", "interpret"])
def test_step(interpreter, kind, implementation):
  words, weights, keep = case(kind, 9, 4100)
  scores = np.random.default_rng(1).normal(size=4100).astype(np.float32)
  got = kernels.vote_step(
    scores,
    words,
    weights,
    learning_rate=0.3,
    keep=keep,
    implementation=implementation,
  )
  expected = reference.vote_step(
    scores, words, weights, learning_rate=0.3, keep=keep
  )
  np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(got[1], expected[1])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_accumulate(interpreter, dtype):
  words, weights, _ = case("int32", 7, 200)
  votes = np.random.default_rng(2).integers(-99, 99, 200).astype(dtype)
  for w in (None, (weights % 1000).astype(dtype)):
    got = kernels.accumulate_votes(votes, words, w, implementation="interpret")
    assert got.dtype == dtype
    np.testing.assert_array_equal(
      got, votes + reference.sign_votes(words, w, size=200, output="sum")
    )


def test_split_is_exact():
  """Three terms of 11 bits give back each float32, whatever its exponent."""
  rng = np.random.default_rng(3)
  weights = rng.random(1000, np.float32) * 2.0 ** rng.integers(-60, 60, 1000)
  weights = weights.astype(np.float32)
  terms = np.asarray(launch.split(jnp.asarray(weights)))
  np.testing.assert_array_equal(terms.astype(np.float64).sum(axis=0), weights)
  assert not (terms.view(np.uint32) & 0x1FFF).any()  # tf32 keeps 10 + 1 bits


def test_many_clients_overflow_no_counter():
  """Above the bound the byte counters could wrap: another kernel runs."""
  words = jax.ShapeDtypeStruct((launch.MOST_CLIENTS + 1, 128), jnp.uint32)
  weights = jax.ShapeDtypeStruct((1, words.shape[0]), jnp.uint8)
  used = []

  def call(source, *arrays, outputs, **launch):
    used.append(source)
    return tuple(jnp.zeros(out.shape, out.dtype) for out in outputs)

  jax.eval_shape(
    lambda *arrays: launch.votes(
      call, *arrays, fields=("words", "weights"), size=9, output="sum"
    ),
    words,
    weights,
  )
  assert used == [f"{launch.MODULE}:select"]
