"""The chunk fits the memory that it is given, and is as large as can be."""

import jax
import jax.numpy as jnp
import pytest

from fedjax_het.core.chunking import choose_chunk
from fedjax_het.core.errors import UserError

KIB = 1024


def _make(chunk):
  """Needs about `chunk` x 256 KiB of temporaries."""

  def step(x):
    wide = jnp.sin(x[:, None] + jnp.arange(chunk * 65536.0)[None])
    return jnp.sort(wide, axis=1).sum()

  return step


def _temporary(chunk):
  compiled = jax.jit(_make(chunk)).lower(jnp.ones(1)).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("free_kib", [700, 3000, 9000])
def test_largest_power_of_two_that_fits(free_kib):
  free = free_kib * KIB
  chunk = choose_chunk(_make, (jnp.ones(1),), 1000, free_bytes=free)
  assert chunk & (chunk - 1) == 0
  assert _temporary(chunk) <= 0.8 * free < _temporary(2 * chunk)


def test_a_small_cohort_fits_whole():
  args = (jnp.ones(1),)
  assert choose_chunk(_make, args, 11, free_bytes=2**30) == 11


def test_a_client_that_does_not_fit_is_an_error():
  with pytest.raises(UserError, match="smaller model or batch"):
    choose_chunk(_make, (jnp.ones(1),), 10, free_bytes=10 * KIB)


def test_cpu_scans_over_clients():
  assert choose_chunk(_make, (jnp.ones(1),), 1000) == 1
