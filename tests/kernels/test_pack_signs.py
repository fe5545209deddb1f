"""Packing: the planar layout, sgn(0), NaN, round trips; sampled bits."""

import subprocess
import sys

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import fedjax_het_kernels as kernels
from fedjax_het_kernels.pack_signs import reference, specs
from fedjax_het_kernels.pack_signs.op import sample_signs
from fedjax_het_kernels.pack_signs.philox import philox

SPECS = [
  pytest.param(spec, id=spec.name)
  for spec in specs.SPECS
  if not spec.bench and not spec.gpu
]


@pytest.mark.parametrize(
  "parameter, word, bit",
  [
    (0, 0, 0),
    (127, 127, 0),
    (128, 0, 1),
    (4095, 127, 31),
    (4096, 128, 0),
    (5000, 136, 7),
  ],
)
def test_place_of_a_parameter(parameter, word, bit):
  bits = jnp.zeros(5001, bool).at[parameter].set(True)
  words = np.asarray(kernels.pack_bits(bits))
  assert np.flatnonzero(words).tolist() == [word]
  assert int(words[word]) == 1 << bit


@pytest.mark.parametrize("spec", SPECS)
def test_against_packbits_and_reference(spec, pack_planar):
  (values,) = specs.inputs(spec)
  expected = pack_planar(values >= 0)
  words = kernels.pack_signs(values)
  assert words.dtype == jnp.uint32
  assert words.shape == (spec.clients, kernels.num_words(spec.size))
  np.testing.assert_array_equal(words, expected)
  np.testing.assert_array_equal(jax.vmap(kernels.pack_signs)(values), expected)
  np.testing.assert_array_equal(jax.jit(kernels.pack_signs)(values), expected)
  for row, packed in zip(values, expected, strict=True):
    np.testing.assert_array_equal(reference.pack_signs(row), packed)
  signs = kernels.unpack_signs(words, spec.size)
  assert signs.dtype == jnp.float32
  np.testing.assert_array_equal(signs, np.where(values >= 0, 1, -1))


@settings(max_examples=20, deadline=None)
@given(
  size=st.integers(0, 9000),
  batch=st.lists(st.integers(0, 3), max_size=2),
  seed=st.integers(0, 2**32 - 1),
)
def test_bits_round_trip(pack_planar, size, batch, seed):
  bits = np.random.default_rng(seed).random((*batch, size)) < 0.5
  words = jax.jit(kernels.pack_bits)(bits)
  np.testing.assert_array_equal(words, pack_planar(bits))
  back = jax.jit(lambda words: kernels.unpack_bits(words, size))(words)
  assert back.dtype == bool
  np.testing.assert_array_equal(back, bits)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
def test_sign_of_special_values(dtype):
  values = [0.0, -0.0, 1, -1]
  if dtype != "int32":
    values += [np.inf, -np.inf, 6e-8, -6e-8]
  words = kernels.pack_signs(jnp.array(values, dtype))
  signs = kernels.unpack_signs(words, len(values))
  np.testing.assert_array_equal(
    signs, [1, 1, 1, -1, 1, -1, 1, -1][: len(values)]
  )


def test_nan_is_refused_or_minus():
  values = jnp.array([1.0, jnp.nan])
  with pytest.raises(ValueError, match="NaN"):
    kernels.pack_signs(values)
  words = jax.jit(kernels.pack_signs)(values)
  np.testing.assert_array_equal(kernels.unpack_signs(words, 2), [1, -1])


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: kernels.pack_signs(jnp.float32(1)), "scalar"),
    (lambda: kernels.pack_signs(jnp.zeros(3, complex)), "complex64"),
    (lambda: kernels.pack_bits(jnp.zeros(3)), "must be bool"),
    (lambda: kernels.unpack_signs(jnp.zeros(128), 3), "must be uint32"),
    (
      lambda: kernels.unpack_signs(jnp.zeros(128, jnp.uint32), 4097),
      "do not hold 4097 signs",
    ),
  ],
)
def test_wrong_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.parametrize("spec", SPECS)
def test_interpreted(interpreter, spec, pack_planar):
  (values,) = specs.inputs(spec)
  for dtype in (np.float32, np.float16):
    words = kernels.pack_signs(values.astype(dtype), implementation="interpret")
    np.testing.assert_array_equal(words, pack_planar(values >= 0))


def test_interpreted_under_transformations(interpreter, pack_planar):
  """vmap is one launch, whichever axis it maps; grad sees a constant."""
  values = np.random.default_rng(0).standard_normal((2, 3, 5000), np.float32)

  def pack(values):
    return kernels.pack_signs(values, implementation="interpret")

  expected = pack_planar(values >= 0)
  np.testing.assert_array_equal(jax.vmap(jax.vmap(pack))(values), expected)
  np.testing.assert_array_equal(
    jax.jit(jax.vmap(pack, in_axes=1, out_axes=1))(values), expected
  )

  def loss(values):
    return (values**2).sum(), pack(values)

  grads, words = jax.vmap(jax.grad(loss, has_aux=True))(values)
  np.testing.assert_array_equal(words, expected)
  np.testing.assert_array_equal(grads, 2 * values)


def test_integers_take_the_plain_path(interpreter, pack_planar):
  values = np.arange(-50, 50, dtype=np.int32)
  words = kernels.pack_signs(values, implementation="interpret")
  np.testing.assert_array_equal(words, pack_planar(values >= 0))


def test_unknown_implementation():
  with pytest.raises(ValueError, match="unknown implementation 'cuda'"):
    kernels.pack_signs(jnp.ones(3), implementation="cuda")
  with pytest.raises(NotImplementedError, match="needs a CUDA device"):
    kernels.pack_signs(jnp.ones(3), implementation="triton")


# -- sampled bits


@pytest.mark.parametrize(
  "counter, key, expected",
  [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
      [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
      [0xA4093822, 0x299F31D0],
      "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
  ],
)
def test_philox_known_answers(counter, key, expected):
  """Those that the authors publish with Random123."""
  words = jax.jit(philox)(
    tuple(map(jnp.uint32, counter)), tuple(map(jnp.uint32, key))
  )
  assert " ".join(f"{int(word):08x}" for word in words) == expected


def draws(key, size):
  """u_p of every parameter, from the definition in Python integers."""
  left, right = jax.random.bits(key, (2,), "uint32").tolist()
  found = []
  for p in range(size):
    tile, rest = divmod(p, 4096)
    bit, lane = divmod(rest, 128)
    a, b, c, d = tile * 128 + lane, bit // 8, 0, 0
    k, m = left, right
    for _ in range(10):
      x, y = a * 0xD2511F53, c * 0xCD9E8D57
      a, b, c, d = (
        (y >> 32) ^ b ^ k,
        y & 0xFFFFFFFF,
        (x >> 32) ^ d ^ m,
        x & 0xFFFFFFFF,
      )
      k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    found.append(((a, b, c, d)[bit % 8 // 2] >> (16 * (bit % 2))) & 0xFFFF)
  return np.array(found)


@pytest.mark.parametrize("implementation", [None, "xla", "interpret"])
def test_sampled_bits_are_as_defined(interpreter, implementation, pack_planar):
  key, size = jax.random.key(3), 4500
  u = draws(key, size)
  rng = np.random.default_rng(0)
  # Half of them within a rounding of the draw, where a bit could be lost.
  near = (u + 0.5 + rng.choice([-1, 0, 1], size) * 2.0**-8) / 2**16
  p = np.where(rng.random(size) < 0.5, near, rng.random(size))
  p = p.astype(np.float32)
  words = sample_signs(key, p, implementation=implementation)
  np.testing.assert_array_equal(
    words, pack_planar((u + 0.5) / 2**16 < np.float64(p))
  )


@pytest.mark.parametrize("implementation", [None, "interpret"])
def test_certain_and_padding_bits(interpreter, implementation, pack_planar):
  for size in (0, 1, 127, 4096, 4097):
    for p in (0.0, 1.0):
      words = sample_signs(
        jax.random.key(0), jnp.full(size, p), implementation=implementation
      )
      assert words.shape == (kernels.num_words(size),)
      np.testing.assert_array_equal(words, pack_planar(np.full(size, p == 1)))


def test_frequencies():
  """Mean, and correlation of neighbours in every direction: 5 sigma."""
  p = np.repeat(np.float32([0.1, 0.5, 0.9]), 2**17).reshape(3, -1)
  words = jax.jit(sample_signs)(jax.random.key(1), p)
  bits = np.asarray(kernels.unpack_bits(words, 2**17))
  z = (bits - np.float64(p)) / np.sqrt(p * (1 - p))  # mean 0, variance 1
  bound = 5 / np.sqrt(2**17)
  assert np.abs(z.mean(axis=1)).max() < bound
  for step in (1, 128, 256, 1024, 4096):
    assert np.abs((z[:, step:] * z[:, :-step]).mean(axis=1)).max() < 1.1 * bound
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert abs((z[one] * z[other]).mean()) < bound


@pytest.mark.parametrize("implementation", [None, "xla", "interpret"])
def test_sampling_under_vmap(interpreter, implementation):
  """Each key draws for itself, as alone; one key for all draws alike."""
  keys = jax.random.split(jax.random.key(0), 3)
  p = np.random.default_rng(0).random((3, 4100), np.float32)

  def sample(key, p):
    return sample_signs(key, p, implementation=implementation)

  both = jax.jit(jax.vmap(sample))(keys, p)
  for n in range(3):
    np.testing.assert_array_equal(both[n], sample(keys[n], p[n]))
  shared = jax.vmap(sample, (None, 0))(keys[0], p)
  np.testing.assert_array_equal(shared[2], sample(keys[0], p[2]))
  several = jax.vmap(sample, (0, None))(keys, p[0])
  np.testing.assert_array_equal(several[2], sample(keys[2], p[0]))


@pytest.mark.parametrize(
  "probabilities, message",
  [
    (np.float32(0.5), "scalar"),
    (np.array([0, 1]), "must be float, not int32"),
    (np.array([0.5, 1.5], np.float32), r"in \[0, 1\]"),
    (np.array([0.5, np.nan], np.float32), r"in \[0, 1\]"),
  ],
)
def test_wrong_probabilities(probabilities, message):
  with pytest.raises(ValueError, match=message):
    sample_signs(jax.random.key(0), probabilities)


def test_probabilities_out_of_range_under_jit():
  p = jnp.array([-0.5, jnp.nan, 1.5, jnp.inf, -jnp.inf])
  words = jax.jit(sample_signs)(jax.random.key(0), p)
  assert kernels.unpack_bits(words, 5).tolist() == [0, 0, 1, 1, 0]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="guards XLA:CPU")
def test_sampling_takes_no_random_words_from_memory():
  shape = jax.ShapeDtypeStruct((10, 2**20), jnp.float32)
  run = jax.jit(lambda p: sample_signs(jax.random.key(0), p))
  memory = run.lower(shape).compile().memory_analysis()
  assert memory.temp_size_in_bytes <= 2 * shape.size // 8 + 2**16


def test_import_is_light(source_env):
  code = (
    "import sys, fedjax_het_kernels\n"
    "heavy = {'triton', 'flax', 'optax', 'scipy.optimize', 'sklearn'}\n"
    "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
  )
  subprocess.run([sys.executable, "-c", code], env=source_env, check=True)
