"""The planar bit tile: 4096 parameters in 128 words of 32 bits.

Parameter p = t*4096 + j*128 + l is bit j of word t*128 + l, so that

  words[W] as [tiles, 128]  expands to  bits [tiles, 32, 128] = bits[tiles*4096]

by one outer axis: no transpose, and every load and store is contiguous.
"""

import jax.numpy as jnp

LANES = 128  # words in a tile
BITS = 32  # bits in a word
TILE = LANES * BITS  # parameters in a tile


def num_words(size: int) -> int:
  """Words that hold `size` signs: 128 for each 4096 begun, 0 for none."""
  return -(-size // TILE) * LANES


def check_words(op: str, words, size: int) -> None:
  """Raises ValueError unless words is uint32[..., num_words(size)]."""
  if words.dtype != jnp.uint32:
    raise ValueError(f"{op}: words must be uint32, not {words.dtype}")
  if words.ndim == 0 or words.shape[-1] != num_words(size):
    raise ValueError(
      f"{op}: words {words.shape} do not hold {size} signs; give"
      f" [..., {num_words(size)}] words, as pack_signs makes them"
    )
