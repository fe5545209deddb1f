"""How far each client's features lie from all clients' features together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def frechet(features: ArrayLike, parts: Sequence[np.ndarray]) -> np.ndarray:
  """Squared Frechet distance of each client's features to all clients'.

  Both are taken for Gaussians:
    |m_j - m|^2 + tr(S_j + S - 2 (S^(1/2) S_j S^(1/2))^(1/2)),
  with means m and covariances S (divided by n).  Scale the features as you
  want them to count.  A client of few examples lies some way off by chance
  alone: compare with an IID partition of the same sizes.

  Args:
    features: f[n, d].
    parts: each client's rows.

  Returns:
    f64[N], in squared units of the features.

  References:
    Dowson and Landau, The Frechet Distance between Multivariate Normal
    Distributions, Journal of Multivariate Analysis 12, 1982.
  """
  features = _features(features)
  mean, covariance = _gaussian(features[np.concatenate(parts)])
  values, vectors = np.linalg.eigh(covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  out = []
  for part in parts:
    own_mean, own = _gaussian(features[part])
    common = np.linalg.eigvalsh(root @ own @ root)
    overlap = np.sqrt(np.maximum(common, 0)).sum()
    spread = np.trace(own) + np.trace(covariance) - 2 * overlap
    out.append(np.square(own_mean - mean).sum() + max(spread, 0.0))
  return np.array(out)


def squared_mmd(
  features: ArrayLike,
  parts: Sequence[np.ndarray],
  *,
  bandwidth: float | None = None,
) -> np.ndarray:
  """Squared maximum mean discrepancy of each client's features to all clients'.

  With k(x, y) = exp(-|x - y|^2 / (2 s^2)) the biased estimate
  mean k(x, x') - 2 mean k(x, y) + mean k(y, y'), diagonals included, x of the
  client and y of all clients; it costs n^2 kernels, so take a sample of many
  rows.

  Args:
    features: f[n, d].
    parts: each client's rows.
    bandwidth: s; default: the median distance between (at most 1,000, evenly
      spaced) rows.

  Returns:
    f64[N], from 0 to 2.

  Raises:
    ValueError: bandwidth <= 0, or all features alike.

  References:
    Gretton et al., A Kernel Two-Sample Test, JMLR 13, 2012.
  """
  features = _features(features)
  everybody = features[np.concatenate(parts)]
  if bandwidth is None:
    pick = np.linspace(0, len(everybody) - 1, min(len(everybody), 1000))
    some = everybody[pick.astype(int)]
    distance = _squared_distances(some, some)
    bandwidth = np.sqrt(np.median(distance[np.triu_indices_from(distance, 1)]))
  if not bandwidth > 0:
    raise ValueError(f"the bandwidth must be positive, got {bandwidth}")

  def mean_kernel(x, y):
    rows = max(1, 2_000_000 // len(y))  # 16 MB at a time
    total = sum(
      np.exp(-_squared_distances(x[i : i + rows], y) / (2 * bandwidth**2)).sum()
      for i in range(0, len(x), rows)
    )
    return total / (len(x) * len(y))

  own = [features[part] for part in parts]
  cross = np.array([mean_kernel(x, everybody) for x in own])
  # the mean over all pairs is the mean of the clients' rows, by size
  sizes = np.array([len(x) for x in own])
  both = sizes @ cross / sizes.sum()
  within = np.array([mean_kernel(x, x) for x in own])
  return np.maximum(within - 2 * cross + both, 0)


def _features(features):
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or not np.isfinite(features).all():
    raise ValueError(
      f"features must be finite numbers [n, d], got {list(features.shape)}"
    )
  return features


def _gaussian(x):
  mean = x.mean(axis=0)
  centred = x - mean
  return mean, centred.T @ centred / len(x)


def _squared_distances(x, y):
  square = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)[None]
  return np.maximum(square - 2 * (x @ y.T), 0)
