"""The definition, in NumPy float64: bit j of word r masks row 32 r + j."""

import numpy as np


def unpack_rows(bits, rows):
  """u32[..., ceil(K / 32), M] -> {0, 1}[..., K, M]."""
  row = np.arange(rows)
  return (bits[..., row // 32, :] >> (row % 32)[:, None].astype(np.uint32)) & 1


def pack_rows(values):
  """f[..., K, M] -> u32[..., ceil(K / 32), M]; bit 1 where value >= 0."""
  *batch, rows, columns = np.shape(values)
  bits = np.zeros((*batch, -(-rows // 32), columns), np.uint32)
  for row in range(rows):
    ones = (np.asarray(values)[..., row, :] >= 0).astype(np.uint32)
    bits[..., row // 32, :] |= ones << np.uint32(row % 32)
  return bits


def masks(bits, rows, values=(-1, 1)):
  """u32[N, ceil(K / 32), M] -> f64[N, K, M] of values[bit]."""
  return np.float64(values)[unpack_rows(bits, rows)]


def masked_matmul(x, weights, bits, values=(-1, 1)):
  """x [N, B, K] or [B, K], weights [K, M] -> f64[N, B, M]."""
  weights = np.float64(weights)
  products = np.zeros((len(bits), x.shape[-2], weights.shape[1]))
  for n in range(len(bits)):
    mask = masks(bits[n : n + 1], len(weights), values)[0]
    products[n] = np.float64(x if x.ndim == 2 else x[n]) @ (weights * mask)
  return products


def ste_update(x, grad, weights, scores, learning_rate):
  """-> new scores f64[N, K, M] and their packed signs."""
  new = np.float64(scores)
  for n in range(len(new)):
    outer = np.float64(x if x.ndim == 2 else x[n]).T @ np.float64(grad[n])
    new[n] -= learning_rate * outer * np.float64(weights)
  return new, pack_rows(new)
