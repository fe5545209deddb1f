"""The definition, in NumPy float64."""

import numpy as np

from fedjax_het_kernels.pack_signs import reference as pack


def sign_votes(words, weights=None, *, size, output="mean"):
  """u32[N, W], weights [N] -> f64[size], or u32[W] for the majority."""
  weights = np.ones(len(words)) if weights is None else weights
  weights = np.asarray(weights, np.float64)
  votes = np.zeros(size)
  for row, weight in zip(words, weights, strict=True):
    votes += weight * pack.unpack_signs(row, size)
  if output == "sum":
    return votes
  if output == "majority":
    return pack.pack_signs(votes)
  return votes / weights.sum() if weights.sum() else np.zeros(size)
