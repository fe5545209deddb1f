"""Packing: the planar layout, sgn(0), NaN, round trips."""

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

SPECS = [
  pytest.param(spec, id=spec.name) for spec in specs.SPECS if not spec.bench
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


def test_import_is_light(source_env):
  code = (
    "import sys, fedjax_het_kernels\n"
    "heavy = {'triton', 'flax', 'optax', 'scipy.optimize', 'sklearn'}\n"
    "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
  )
  subprocess.run([sys.executable, "-c", code], env=source_env, check=True)
