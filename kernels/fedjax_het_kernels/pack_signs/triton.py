"""The kernels.  A program owns one planar tile (layout.py): 4096 values.

The 32 bits of a word lie 128 values apart, so a program reads contiguous rows
of 128 and adds up the bits of a column, in the registers of one thread.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(P, TILES):
  """The program's row of the batch, its offset there, and how much is left."""
  program = tl.program_id(0)
  row = program // TILES
  first = (program - row * TILES).to(tl.int64) * 4096
  return row, row.to(tl.int64) * P + first, P - first


@triton.jit
def _store(words, word_ptr):
  at = tl.program_id(0).to(tl.int64) * 128 + tl.arange(0, 128)
  tl.store(word_ptr + at, words.to(tl.uint32))


@triton.jit
def pack(value_ptr, word_ptr, P, TILES):
  """values [B, P] to words [B, TILES * 128]; grid (B * TILES,)."""
  _, offset, left = _tile(P, TILES)
  plane = tl.arange(0, 32)[:, None]
  within = plane * 128 + tl.arange(0, 128)[None, :]
  # -1 packs as 0.
  value = tl.load(value_ptr + offset + within, mask=within < left, other=-1)
  ones = (value >= 0).to(tl.uint32) << plane.to(tl.uint32)
  _store(tl.sum(ones, axis=0), word_ptr)


@triton.jit
def sample(key_ptr, probability_ptr, word_ptr, P, TILES):
  """keys [B, 2], probabilities [B, P] to words; grid as `pack`; see `op.py`."""
  row, offset, left = _tile(P, TILES)
  lane, group = tl.arange(0, 128)[None, :], tl.arange(0, 4)[:, None]
  low = tl.load(key_ptr + 2 * row).to(tl.uint64)
  seed = low | (tl.load(key_ptr + 2 * row + 1).to(tl.uint64) << 32)
  tile = tl.program_id(0) - row * TILES
  word = (tile * 128 + lane + 0 * group).to(tl.uint32)
  zero = word * 0
  draws = tl.philox(seed, word, zero + group.to(tl.uint32), zero, zero)
  packed = zero
  for i in tl.static_range(4):
    for half in tl.static_range(2):
      plane = 8 * group + 2 * i + half
      within = plane * 128 + lane
      at = probability_ptr + offset + within
      probability = tl.load(at, mask=within < left, other=0.0)
      draw = (draws[i] >> (16 * half)) & 0xFFFF
      uniform = (draw.to(tl.float32) + 0.5) * (1.0 / 65536)
      packed |= (uniform < probability).to(tl.uint32) << plane.to(tl.uint32)
  _store(tl.sum(packed, axis=0), word_ptr)
