"""The definition, in NumPy float64."""

import numpy as np

from fedjax_het_kernels.pack_signs.reference import pack_signs, unpack_signs


def sign_votes(
  words, weights=None, *, size, output="mean", base=None, keep=None
):
  """u32[N, W], [N] or [K, N] -> f64[..., P], or u32[..., W] for "majority"."""
  weights = np.float64(np.ones(len(words)) if weights is None else weights)
  kept = np.ones(size) if keep is None else (unpack_signs(keep, size) + 1) / 2
  votes = np.zeros((*weights.shape[:-1], size))
  for n, row in enumerate(words):
    votes += weights[..., n, None] * unpack_signs(row, size)
  if output == "sum":
    return kept * (votes if base is None else base + votes)
  if output == "majority":
    signs = np.where(kept > 0, votes, -1)
    return np.apply_along_axis(pack_signs, -1, signs)
  total = weights.sum(axis=-1, keepdims=True)
  return kept * votes / np.where(total == 0, 1, total)


def vote_step(scores, words, weights=None, *, learning_rate, keep=None):
  """scores f64[P] -> new scores f64[P], their packed signs u32[W]."""
  size = len(scores)
  mean = sign_votes(words, weights, size=size)
  kept = np.ones(size) if keep is None else (unpack_signs(keep, size) + 1) / 2
  new = kept * (scores + learning_rate * mean)
  return new, pack_signs(np.where(kept > 0, new, -1))
