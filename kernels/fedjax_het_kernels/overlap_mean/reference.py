"""The definition, in NumPy float64: one entry or block at a time."""

import numpy as np


def sums(values, ids, weights, count):
  """f[T, C], i[T], [T] -> weighted sums f64[R, C], weight present f64[R]."""
  total, held = np.zeros((count, values.shape[1])), np.zeros(count)
  for value, row, weight in zip(values, ids, weights, strict=True):
    if 0 <= row < count and weight != 0:
      total[row] += np.float64(weight) * np.float64(value)
      held[row] += weight
  return total, held


def block_sums(
  values, rows, cols, weights, shape, row_start=None, col_start=None
):
  """f[N, H, W] -> f64[R, C] twice; client n holds rows[n] x cols[n] of it."""
  total, held = np.zeros(shape), np.zeros(shape)
  for n, weight in enumerate(weights):
    first = [0 if x is None else x[n] for x in (row_start, col_start)]
    row = (first[0] + np.arange(rows[n])) % shape[0]
    col = (first[1] + np.arange(cols[n])) % shape[1]
    if weight != 0:
      block = np.float64(values[n, : rows[n], : cols[n]])
      total[np.ix_(row, col)] += np.float64(weight) * block
      held[np.ix_(row, col)] += weight
  return total, held


def mean(total, held, old):
  """total / held, and old where nothing is held."""
  old = np.float64(old)
  held = held.reshape(held.shape + (1,) * (old.ndim - held.ndim))
  return np.where(held == 0, old, total / np.where(held == 0, 1, held))


def overlap_mean(values, ids, weights, old):
  """f[T, C], i[T], [T], f[R, C] -> f64[R, C]."""
  return mean(*sums(values, ids, weights, len(old)), old)


def overlap_mean_blocks(
  values, rows, cols, weights, old, row_start=None, col_start=None
):
  """f[N, H, W], i[N], i[N], [N], f[R, C] -> f64[R, C]."""
  given = values, rows, cols, weights, old.shape, row_start, col_start
  return mean(*block_sums(*given), old)
