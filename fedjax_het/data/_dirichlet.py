"""Dirichlet partitioners: label proportions drawn per class or per client.

Names and rules follow flwr-datasets 0.6; see docs/data.md for the differences.
"""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data._owners import (
  NOBODY,
  by_class,
  check_labels,
  check_positive,
  check_sizes,
  gather,
)

MAX_DRAWS = 500


def _dirichlet_counts(rng, class_sizes, num_clients, alpha, balanced):
  """Examples of each class for each client, i64[K, N]."""
  share = rng.dirichlet(np.full(num_clients, alpha), size=class_sizes.size)
  if balanced:
    # A client that holds more than the average takes no further class.
    held = np.zeros(num_clients)
    average = class_sizes.sum() / num_clients
    for k in range(class_sizes.size):
      still_open = held <= average  # never all False: they would hold > n
      row = share[k] * still_open
      total = row.sum()
      share[k] = row / total if total > 0 else still_open / still_open.sum()
      held += deal(share[k : k + 1], class_sizes[k : k + 1])[0]
  return deal(share, class_sizes)


def deal(share, class_sizes):
  """Cuts each class at the cumulated shares: [K, N], [K] -> i64[K, N]."""
  edge = np.cumsum(share, axis=1)
  edge /= edge[:, -1:]  # exactly 1 from the last client with a share on
  edge = (edge * class_sizes[:, None]).astype(np.int64)
  return np.diff(edge, axis=1, prepend=0)


def dirichlet(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  alpha: float,
  seed: int = 0,
  min_size: int = 10,
  balanced: bool = False,
) -> list[np.ndarray]:
  """Deals each class to the clients in Dirichlet proportions.

  For every class k, q_k ~ Dir(alpha, ..., alpha) over the N *clients*, and
  client i gets the share q_ki of the class.  `alpha` is the concentration of
  each client (not their total); small values give few classes per client, and
  clients of very different sizes.  Everything is drawn again until each client
  holds `min_size` examples.

  Args:
    labels: i[n], the class of each example.
    num_clients: N.
    alpha: concentration, > 0.
    seed: of the NumPy generator.
    min_size: the fewest examples of a client, >= 1.
    balanced: a client that holds more than n / N takes no further class
      (flwr-datasets' `self_balancing`).

  Returns:
    N index arrays that hold each of the n rows once.

  Raises:
    UserError: alpha <= 0, too few examples, or no draw in 500 was large
      enough for every client.

  References:
    Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural
    Networks, 2019, arXiv:1905.12022.
  """
  labels = check_labels(labels, num_clients, min_size=min_size)
  check_positive("alpha", alpha)
  rng = np.random.default_rng(seed)
  rows, class_sizes = by_class(labels, rng)
  best = 0
  for _ in range(MAX_DRAWS):
    counts = _dirichlet_counts(rng, class_sizes, num_clients, alpha, balanced)
    smallest = int(counts.sum(axis=0).min())
    if smallest >= min_size:
      break
    best = max(best, smallest)
  else:
    raise UserError(
      f"dirichlet: none of {MAX_DRAWS} draws gave each of {num_clients} "
      f"clients {min_size} examples (the best left one with {best}): use "
      f"alpha > {alpha:g}, {f'min_size={best}, ' if best else ''}fewer "
      "clients, or inner_dirichlet, which fixes the sizes"
    )
  owner = np.empty(labels.size, np.int64)
  clients = np.tile(np.arange(num_clients), class_sizes.size)
  owner[rows] = np.repeat(clients, counts.ravel())
  return gather(owner, num_clients, rng)


def inner_dirichlet(
  labels: Sequence[int] | np.ndarray,
  sizes: Sequence[int] | np.ndarray,
  *,
  alpha: float,
  seed: int = 0,
) -> list[np.ndarray]:
  """Fills clients of given sizes from their own Dirichlet over the classes.

  Client i draws p_i ~ Dir(alpha, ..., alpha) over the *classes*; then, in
  random order, each of its places takes a random example of a class drawn from
  p_i.  A class that has run out gets probability 0 and p_i is normalised again.

  Args:
    labels: i[n], the class of each example.
    sizes: i[N], examples of each client; their sum is at most n.
    alpha: concentration of each class (not their total), > 0.
    seed: of the NumPy generator.

  Returns:
    N disjoint index arrays of the given sizes.

  Raises:
    UserError: alpha <= 0, a size < 1, or more places than examples.

  References:
    Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021,
    arXiv:2111.04263.
  """
  labels = check_labels(labels, 1)
  sizes = check_sizes(sizes, labels.size)
  check_positive("alpha", alpha)
  rng = np.random.default_rng(seed)
  rows, class_sizes = by_class(labels, rng)
  num_classes = class_sizes.size
  prior = rng.dirichlet(np.full(num_classes, alpha), size=sizes.size)  # [N, K]
  client = rng.permutation(np.repeat(np.arange(sizes.size), sizes))
  drawn = _draw_classes(rng, prior, client)

  # The rule is sequential, but between two exhaustions all draws are
  # independent: find the place where the next class runs out, and draw again
  # only for the later places that had chosen it.
  live = np.ones(num_classes, bool)
  while True:
    ends = np.full(num_classes, client.size)
    for k in np.flatnonzero(live):
      places = np.flatnonzero(drawn == k)
      if places.size > class_sizes[k]:
        ends[k] = places[class_sizes[k]]
    k = int(np.argmin(ends))
    if ends[k] == client.size:
      break
    live[k] = False
    prior[:, k] = 0
    prior[prior.sum(axis=1) == 0] = live  # all it wanted has run out
    late = np.flatnonzero(drawn == k)[class_sizes[k] :]
    drawn[late] = _draw_classes(rng, prior, client[late])

  owner = np.full(labels.size, NOBODY, np.int64)
  start = 0
  for k, size in enumerate(class_sizes):
    takers = client[drawn == k]
    owner[rows[start : start + takers.size]] = takers
    start += size
  return gather(owner, sizes.size, rng)


def _draw_classes(rng, prior, client):
  """One class for each place, by its client's probabilities: i64[places]."""
  cdf = np.cumsum(prior, axis=1)
  cdf /= cdf[:, -1:]
  u = rng.random(client.size)
  return (cdf[client] <= u[:, None]).sum(axis=1)
