"""Meters of heterogeneity: arrays in, numbers out.

How many kinds there are (Hill numbers), how many distinct clients there are
(beta diversity), and how far each client lies from all clients together, by
its counts or by its features.  "Groups" are classes, clusters or any other
integers that examples can be sorted by.

Example: four clients, two of a kind.
  >>> counts = np.array([[9, 0], [9, 0], [0, 9], [0, 9]])
  >>> print(np.round(decompose(counts), 6))
  [1. 2. 2.]
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_het.core.errors import unknown
from fedjax_het.data._feature_distance import frechet, squared_mmd

__all__ = [
  "DIVERGENCES",
  "Decomposition",
  "decompose",
  "divergence",
  "frechet",
  "group_counts",
  "hill",
  "normalised_hill",
  "squared_mmd",
]

DIVERGENCES = ("total_variation", "jensen_shannon", "kullback_leibler")


class Decomposition(NamedTuple):
  """alpha: kinds within a client; beta: distinct clients; gamma: kinds in all.

  Effective numbers, gamma = alpha * beta.
  """

  alpha: float
  beta: float
  gamma: float


def hill(counts: ArrayLike, q: float = 1.0) -> np.ndarray:
  """Hill number of order q: how many equally common kinds are as diverse.

  D_q = (sum_k p_k^q)^(1 / (1 - q)): the kinds that occur for q = 0, the
  exponential of the entropy for q = 1 (the limit), 1 / sum_k p_k^2 for q = 2,
  1 / max_k p_k for q = inf.  Of the clients' sizes it is the effective number
  of clients.

  Args:
    counts: f[..., K], counts or shares >= 0, not all 0; normalised here.
    q: the order, >= 0; the larger, the less do rare kinds count.

  Returns:
    f64[...], from 1 to K.

  Raises:
    ValueError: negative or non-finite counts, nothing but zeros, or q < 0.

  References:
    Hill, Diversity and Evenness: A Unifying Notation and Its Consequences,
    Ecology 54, 1973.
  """
  p = _shares(counts)
  if not q >= 0:
    raise ValueError(f"q must be >= 0, got {q}")
  if q == np.inf:
    return 1 / p.max(axis=-1)
  if q == 1:
    return np.exp(_entropy(p))
  powers = np.power(p, q, out=np.zeros_like(p), where=p > 0)
  # in logs: for q near 1 the outer power is huge
  return np.exp(np.log(powers.sum(axis=-1)) / (1 - q))


def normalised_hill(counts: ArrayLike, q: float = 1.0) -> np.ndarray:
  """(D_q - 1) / (K - 1) f64[...]: 0 for one kind, 1 for K equal ones.

  A single possible kind (K = 1) has no diversity to normalise: 0.

  Args:
    counts: f[..., K], see `hill`; kinds that do not occur count in K.
    q: the order.

  References:
    The per-question score of GeoDiv (q = 1).
  """
  return (hill(counts, q) - 1) / max(np.shape(counts)[-1] - 1, 1)


def decompose(counts: ArrayLike, q: float = 1.0) -> Decomposition:
  """Splits the diversity of all clients into within and between clients.

  With w_j the share of all examples that client j holds and p_j its groups,
    gamma = D_q(sum_j w_j p_j),
    alpha = (sum_j w_j^q sum_k p_jk^q / sum_j w_j^q)^(1 / (1 - q)),
  for q = 1 alpha = exp(sum_j w_j H(p_j)), and beta = gamma / alpha.  beta is
  the effective number of distinct clients: 1 where all have the same shares of
  groups, D_q(w) where no two have a group in common (N at equal sizes).  Its
  logarithm at q = 1 is the mutual information of client and group; chance
  alone makes it about (N - 1) (K - 1) / 2 n for n examples.

  Args:
    counts: [N, K], examples of each group that each client holds.
    q: the order.  At unequal sizes only q = 0 and q = 1 keep beta >= 1.

  Returns:
    A `Decomposition`.

  Raises:
    ValueError: not [N, K], or what `hill` raises.

  References:
    Jost, Partitioning Diversity into Independent Alpha and Beta Components,
    Ecology 88, 2007.
  """
  p, w, pooled = _clients(counts)
  gamma = float(hill(pooled, q))
  if q == 1:
    alpha = np.exp(w @ _entropy(p))
  elif q == np.inf:
    alpha = w.max() / (w[:, None] * p).max()
  else:
    # sum_k p_jk^q = D_q(p_j)^(1 - q)
    weight = w**q / (w**q).sum()
    alpha = np.exp(np.log(weight @ hill(p, q) ** (1 - q)) / (1 - q))
  return Decomposition(float(alpha), gamma / float(alpha), gamma)


def divergence(counts: ArrayLike, kind: str = "total_variation") -> np.ndarray:
  """How far each client's shares p lie from those of all clients together, m.

  Args:
    counts: [N, K], examples of each group that each client holds.
    kind: "total_variation", sum |p - m| / 2 in [0, 1], the share of a client's
      examples that would have to change their group; "jensen_shannon",
      (KL(p, h) + KL(m, h)) / 2 with h = (p + m) / 2, in [0, log 2];
      "kullback_leibler", KL(p, m), whose mean by size is log beta of
      `decompose`.  Natural logarithms.

  Returns:
    f64[N].

  Raises:
    UserError: an unknown kind.
    ValueError: not [N, K], a client without examples.
  """
  p, _, pooled = _clients(counts)
  pooled = np.broadcast_to(pooled, p.shape)
  if kind == "total_variation":
    return np.abs(p - pooled).sum(axis=1) / 2
  if kind == "jensen_shannon":
    half = (p + pooled) / 2
    return np.maximum(_kl(p, half) + _kl(pooled, half), 0) / 2
  if kind == "kullback_leibler":
    return np.maximum(_kl(p, pooled), 0)
  raise unknown("divergence", kind, DIVERGENCES)


def group_counts(parts: Sequence[np.ndarray], groups: ArrayLike) -> np.ndarray:
  """How many examples of each group each client holds.

  Args:
    parts: each client's rows.
    groups: i[n], the group of each example, >= 0.

  Returns:
    i64[N, K] with K = the largest group + 1.
  """
  groups = np.asarray(groups)
  width = int(groups.max()) + 1
  return np.stack(
    [np.bincount(groups[np.asarray(part)], minlength=width) for part in parts]
  )


def _shares(counts):
  counts = np.asarray(counts, np.float64)
  if counts.ndim < 1 or not np.isfinite(counts).all() or (counts < 0).any():
    raise ValueError("counts must be finite numbers >= 0, [..., K]")
  total = counts.sum(axis=-1, keepdims=True)
  if (total == 0).any():
    raise ValueError("counts are all 0: nothing is there to be diverse")
  return counts / total


def _clients(counts):
  """Each client's shares [N, K], its weight [N], and all clients' shares."""
  counts = np.asarray(counts, np.float64)
  if counts.ndim != 2:
    raise ValueError(f"counts must be [N, K], got {list(counts.shape)}")
  p = _shares(counts)
  return p, _shares(counts.sum(axis=1)), _shares(counts.sum(axis=0))


def _entropy(p):
  log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
  return -(p * log_p).sum(axis=-1)


def _kl(p, m):
  """KL(p, m) over the last axis; m > 0 wherever p > 0."""
  ratio = np.divide(p, m, out=np.ones_like(p), where=p > 0)
  return (p * np.log(ratio)).sum(axis=-1)
