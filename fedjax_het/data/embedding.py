"""Heterogeneity as a task sees it: skew over clusters of a network's features.

Two clients with the same labels can still differ for a task that never looks at
labels.  Here the kinds are clusters of a trained network's features, and the
clients draw from them as they would from classes: every partitioner of
`data.partition` takes clusters in place of labels.

`embedding_dirichlet` fixes the sizes, so that skew over clusters is not mixed
with skew of sizes, and it draws nothing again.  The published code draws
q_i ~ Dir(alpha * cluster share), where alpha is the *total* over the clusters,
solves for sizes and rejects until they fit, which at small alpha may never
happen.  Our alpha is that of *each* cluster, theirs over K, and the same for
small clusters and large ones.

References:
  Borazjani et al., Redefining non-IID Data in Federated Learning for Computer
  Vision Tasks, 2025, arXiv:2503.14553 (the method, from its code).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Params
from fedjax_het.data.partition import PARTITIONERS


class Overlap(NamedTuple):
  """How two groupings of the same examples agree.

  nmi: normalised mutual information, 0 (independent) to 1 (the same groups).
  confusion: i64[A, B], examples of each pair of groups.
  """

  nmi: float
  confusion: np.ndarray


def embed(
  features: Callable[[Params, Array], Array],
  params: Params,
  x: np.ndarray,
  batch_size: int = 1000,
) -> np.ndarray:
  """Features of all examples, a batch at a time.

  Args:
    features: (params, x f32[B, ...]) -> f32[B, ...], jitted here.  Give the
      same function again and it is not compiled again.
    params: of a trained network.
    x: [n, ...].
    batch_size: B.

  Returns:
    f32[n, d], flattened, on the host.
  """
  run = jax.jit(features)
  out = []
  for start in range(0, len(x), batch_size):
    batch = np.asarray(x[start : start + batch_size], np.float32)
    short = min(batch_size, len(x)) - len(batch)  # one shape: compiled once
    padded = np.pad(batch, [(0, short)] + [(0, 0)] * (batch.ndim - 1))
    part = np.asarray(run(params, jnp.asarray(padded)), np.float32)
    out.append(part.reshape(len(padded), -1)[: len(batch)])
  return np.concatenate(out)


def clusters(
  features: np.ndarray, num_clusters: int = 10, seed: int = 0
) -> np.ndarray:
  """Groups features by k-means (k-means++ seeding, one start).

  Args:
    features: f[n, d], finite.
    num_clusters: K.
    seed: of the seeding.

  Returns:
    i64[n], 0 .. K - 1; every cluster occurs.

  Raises:
    UserError: features that are not finite [n, d], or fewer than K different
      ones (a network whose features have died).
  """
  from sklearn.cluster import KMeans
  from sklearn.exceptions import ConvergenceWarning

  features = np.asarray(features)
  if features.ndim != 2 or not np.isfinite(features).all():
    raise UserError(
      "features must be finite numbers [n, d], got "
      f"{features.dtype} {list(features.shape)}: did the network diverge?"
    )
  if not 1 <= num_clusters <= len(features):
    raise UserError(
      f"num_clusters must be between 1 and the {len(features)} examples, got "
      f"{num_clusters}"
    )
  means = KMeans(num_clusters, init="k-means++", n_init=1, random_state=seed)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # we say it ourselves
    assigned = means.fit_predict(features).astype(np.int64)
  found = np.unique(assigned).size
  if found < num_clusters:
    raise UserError(
      f"the features fall into {found} different points, fewer than "
      f"num_clusters={num_clusters}: use fewer clusters or train the network"
    )
  return assigned


def embedding_dirichlet(
  features_or_clusters: np.ndarray,
  num_clients: int,
  *,
  alpha: float,
  num_clusters: int = 10,
  size: int | None = None,
  seed: int = 0,
) -> list[np.ndarray]:
  """Clients of equal size, each with its own Dirichlet over clusters.

  `inner_dirichlet` on the clusters.  Over an example's clusters and over its
  labels it is the same rule, so at equal `alpha`, sizes and number of groups
  the two differ only in what a group is.

  Args:
    features_or_clusters: f[n, d], clustered here; or i[n], clusters.
    num_clients: N.
    alpha: concentration of each cluster (not their total), > 0.
    num_clusters: K, for features.
    size: examples of a client; default: all n, as evenly as can be.  Then all
      partitions of one data set hold the same examples together.
    seed: of the clustering and of the partition.

  Returns:
    N disjoint index arrays.

  Raises:
    UserError: what `clusters` and `inner_dirichlet` raise.
  """
  groups = np.asarray(features_or_clusters)
  if groups.ndim != 1:
    groups = clusters(groups, num_clusters, seed)
  return PARTITIONERS["inner_dirichlet"].build(
    groups, num_clients, alpha=alpha, size=size, seed=seed
  )


def overlap(
  first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray
) -> Overlap:
  """How far two groupings agree, e.g. the clusters of two tasks, or labels.

  Mutual information is normalised by the mean of both entropies.

  Args:
    first, second: i[n], groups >= 0 of the same examples.

  Raises:
    ValueError: of different lengths.
  """
  from sklearn.metrics import normalized_mutual_info_score

  first, second = np.asarray(first), np.asarray(second)
  if first.shape != second.shape or first.ndim != 1:
    raise ValueError(f"not pairs: {first.shape} and {second.shape}")
  confusion = np.zeros((first.max() + 1, second.max() + 1), np.int64)
  np.add.at(confusion, (first, second), 1)
  return Overlap(float(normalized_mutual_info_score(first, second)), confusion)
