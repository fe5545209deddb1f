"""Packing and unpacking in plain JAX: one fusion each, no temporary."""

import jax
import jax.numpy as jnp

from fedjax_het_kernels.layout import BITS, LANES, TILE, num_words


def single_bits(ndim: int) -> jax.Array:
  """2^j as u32[1, ..., BITS, 1] for an operand [..., tiles, BITS, LANES]."""
  bits = jnp.uint32(1) << jnp.arange(BITS, dtype=jnp.uint32)
  return bits.reshape((1,) * (ndim - 2) + (BITS, 1))


def pack_bits(bits: jax.Array) -> jax.Array:
  """bool[..., P] -> u32[..., W]."""
  *batch, size = bits.shape
  words = num_words(size)
  pad = [(0, 0)] * len(batch) + [(0, words * BITS - size)]
  planes = jnp.pad(bits, pad).reshape(*batch, words // LANES, BITS, LANES)
  weighted = jnp.where(planes, single_bits(planes.ndim), jnp.uint32(0))
  return weighted.sum(axis=-2, dtype=jnp.uint32).reshape(*batch, words)


def unpack_bits(words: jax.Array, size: int) -> jax.Array:
  """u32[..., W] -> bool[..., size]."""
  *batch, count = words.shape
  planes = words.reshape(*batch, count // LANES, 1, LANES)
  bits = (planes & single_bits(planes.ndim)) != 0
  return bits.reshape(*batch, count // LANES * TILE)[..., :size]
