"""Packing and unpacking in plain JAX: one fusion each, no temporary.

But sampling copies probabilities whose number is no multiple of 4096.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.layout import BITS, LANES, TILE, num_words
from fedjax_het_kernels.pack_signs.philox import philox


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


def pack(values: jax.Array) -> tuple[jax.Array]:
  """The op: see `op.PACK`."""
  return (pack_bits(values >= 0),)


def sample(keys: jax.Array, probabilities: jax.Array) -> tuple[jax.Array]:
  """The op: see `op.SAMPLE`."""
  *batch, size = probabilities.shape
  words = num_words(size)
  shape = (*batch, words // LANES, 4, LANES)  # 8 bits each
  tile, group, lane = (
    lax.broadcasted_iota(jnp.uint32, shape, len(batch) + axis)
    for axis in range(3)
  )
  zeros = jnp.zeros(shape, jnp.uint32)
  keys = [keys[..., i, None, None, None] for i in range(2)]
  random = philox((LANES * tile + lane, group, zeros, zeros), tuple(keys))
  pad = [(0, 0)] * len(batch) + [(0, words * BITS - size)]
  rows = jnp.pad(probabilities, pad).reshape(*shape[:-1], 8, LANES)
  packed = zeros
  for i, draws in enumerate(random):
    for half in range(2):
      draw = (draws >> (16 * half)) & jnp.uint32(0xFFFF)
      # Exact: no more bits than a float32 has.
      uniform = (draw.astype(jnp.float32) + 0.5) * 2.0**-16
      bit = jnp.uint32(1) << (8 * group + jnp.uint32(2 * i + half))
      ones = uniform < rows[..., 2 * i + half, :]
      packed = packed | jnp.where(ones, bit, jnp.uint32(0))
  packed = packed.sum(axis=-2, dtype=jnp.uint32)
  return (packed.reshape(*batch, words),)
