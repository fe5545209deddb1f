"""The definition, in NumPy: parameter p = t*4096 + j*128 + l."""

import numpy as np


def position(size):
  """Word and bit of each parameter: i64[size], i64[size]."""
  tile, rest = np.divmod(np.arange(size), 4096)
  bit, lane = np.divmod(rest, 128)
  return tile * 128 + lane, bit


def pack_signs(values):
  """f[P] -> u32[W]; bit 1 where value >= 0, padding 0."""
  word, bit = position(len(values))
  words = np.zeros(-(-len(values) // 4096) * 128, np.uint32)
  ones = (np.asarray(values) >= 0).astype(np.uint32)
  np.bitwise_or.at(words, word, ones << bit.astype(np.uint32))
  return words


def unpack_signs(words, size):
  """u32[W] -> f64[size] in {-1, +1}."""
  word, bit = position(size)
  return 2.0 * ((words[word] >> bit) & 1) - 1.0
