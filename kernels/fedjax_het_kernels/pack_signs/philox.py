"""Philox4x32-10 in plain JAX: the random bits that the kernel draws, too.

A counter-based generator of Salmon et al., Parallel random numbers: as easy as
1, 2, 3 (SC 2011).  It is a few multiplications a word without any memory, where
`jax.random.bits` writes its words out before they are used.
"""

import jax
import jax.numpy as jnp

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
STEPS = 0x9E3779B9, 0xBB67AE85  # of the key, a round


def philox(
  counter: tuple[jax.Array, ...], key: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
  """Four u32 arrays and a key of two to four random u32 arrays."""
  a, b, c, d = counter
  left, right = key
  for _ in range(ROUNDS):
    high_a, low_a = _product(a, MULTIPLIERS[0])
    high_c, low_c = _product(c, MULTIPLIERS[1])
    a, b, c, d = high_c ^ b ^ left, low_c, high_a ^ d ^ right, low_a
    left, right = left + jnp.uint32(STEPS[0]), right + jnp.uint32(STEPS[1])
  return a, b, c, d


def _product(x, factor: int):
  """High and low word of x * factor, in 16-bit halves: there is no uint64."""
  half = jnp.uint32(0xFFFF)
  factor_high, factor_low = (
    jnp.uint32(factor >> 16),
    jnp.uint32(factor & 0xFFFF),
  )
  x_high, x_low = x >> 16, x & half
  middle = x_high * factor_low + ((x_low * factor_low) >> 16)
  other = x_low * factor_high + (middle & half)
  high = x_high * factor_high + (middle >> 16) + (other >> 16)
  return high, x * jnp.uint32(factor)
