"""The definition, in NumPy float64."""

import numpy as np


def sparse_sum(index, value, weight=None, *, size):
  """i[N, k], f[N, k], [N] -> f64[size]; out of range is padding."""
  weight = np.ones(len(index)) if weight is None else np.float64(weight)
  inside = (index >= 0) & (index < size) & (weight != 0)[:, None]
  terms = np.where(inside, np.float64(value), 0) * weight[:, None]
  total = np.zeros(size)
  np.add.at(total, index[inside], terms[inside])
  return total
