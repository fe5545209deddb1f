"""Partitions for a handful of clients, as FedCompass uses them.

References:
  Li et al., FedCompass, ICLR 2024, arXiv:2309.14675 (rules from its code,
  github.com/APPFL/FedCompass).
"""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data._dirichlet import MAX_DRAWS, deal
from fedjax_het.data._owners import (
  by_class,
  check_labels,
  check_positive,
  gather,
)


def dual_dirichlet(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  alpha: float = 0.5,
  size_alpha: float | None = None,
  min_size: int = 10,
  seed: int = 0,
) -> list[np.ndarray]:
  """Clients of random sizes, each with its own mixture of classes.

  Sizes s ~ Dir(size_alpha / N over clients), mixtures
  q_i ~ Dir(alpha x class prior); client i gets the share
  s_i q_ik / sum_j s_j q_jk of class k, so that every example has an owner.
  Everything is drawn again until each client holds `min_size`.

  Args:
    labels: i[n], the class of each example.
    num_clients: N.
    alpha: total concentration over the classes: 0.5 with ten equal classes is
      0.05 a class, one or two classes a client.
    size_alpha: total concentration over the clients; None: N, 1 a client.
    min_size: the fewest examples of a client, >= 1.
    seed: of the NumPy generator.

  Returns:
    N index arrays that hold each of the n rows once.

  Raises:
    UserError: a concentration <= 0, too few examples, or no draw in 500 was
      large enough for every client.
  """
  labels = check_labels(labels, num_clients, min_size=min_size)
  size_alpha = num_clients if size_alpha is None else size_alpha
  check_positive("alpha", alpha)
  check_positive("size_alpha", size_alpha)
  rng = np.random.default_rng(seed)
  rows, class_sizes = by_class(labels, rng)
  prior = alpha * class_sizes / class_sizes.sum()
  for _ in range(MAX_DRAWS):
    size = rng.dirichlet(np.full(num_clients, size_alpha / num_clients))
    share = (rng.dirichlet(prior, size=num_clients) * size[:, None]).T  # [K, N]
    if (share.sum(1) > 0).all():
      counts = deal(share, class_sizes)
      if counts.sum(0).min() >= min_size:
        return _given(rows, counts, labels.size, rng)
  raise UserError(
    f"dual_dirichlet: none of {MAX_DRAWS} draws gave each of {num_clients} "
    f"clients {min_size} examples: use a larger alpha or size_alpha, a smaller "
    "min_size, or fewer clients"
  )


def class_shares(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  low: int = 5,
  high: int = 6,
  seed: int = 0,
) -> list[np.ndarray]:
  """Clients of `low` to `high` random classes, in shares max(|N(10, 3)|, 1).

  (The floor, ours, is met once in 750 draws and keeps every share above 0.)  A
  class that nobody drew goes to one client more.  The paper's ranges: 5 to 6
  of ten classes for 5 clients, 3 to 5 for more than 7.

  Args:
    labels: i[n], the class of each example.
    num_clients: N.
    low, high: the fewest and the most classes of a client.
    seed: of the NumPy generator.

  Returns:
    N index arrays that hold each of the n rows once.

  Raises:
    UserError: a range outside 1 to K, or a class with fewer examples than
      clients that have it.
  """
  labels = check_labels(labels, num_clients)
  rng = np.random.default_rng(seed)
  rows, class_sizes = by_class(labels, rng)
  classes = class_sizes.size
  if not 1 <= low <= high <= classes:
    raise UserError(
      f"{low} to {high} classes a client: give 1 to {classes}, the smaller "
      "first"
    )
  has = np.zeros((classes, num_clients), bool)
  for client in range(num_clients):
    count = rng.integers(low, high + 1)
    has[rng.choice(classes, count, replace=False), client] = True
  for k in np.flatnonzero(~has.any(1)):
    has[k, rng.integers(num_clients)] = True
  share = np.maximum(np.abs(rng.normal(10, 3, has.shape)), 1) * has
  counts = deal(share, class_sizes)
  if (counts[has] == 0).any():
    k = int(np.flatnonzero((has & (counts == 0)).any(1))[0])
    raise UserError(
      f"label {np.unique(labels)[k]} has {class_sizes[k]} examples but "
      f"{has[k].sum()} clients need some: use fewer clients or classes a client"
    )
  return _given(rows, counts, labels.size, rng)


def _given(rows, counts, total, rng) -> list[np.ndarray]:
  """The rows of each client, from counts i64[K, N]."""
  owner = np.empty(total, np.int64)
  clients = np.tile(np.arange(counts.shape[1]), counts.shape[0])
  owner[rows] = np.repeat(clients, counts.ravel())
  return gather(owner, counts.shape[1], rng)
