"""A Dirichlet partition in which known clients hold most of one class."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data._dirichlet import dirichlet
from fedjax_het.data._owners import check_labels


def affected_dirichlet(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  alpha: float,
  affected: int = 0,
  min_size: int = 2,
  seed: int = 0,
) -> list[np.ndarray]:
  """`dirichlet`, its parts given out so that skew and device go together.

  Of K classes, let a be the affected one's place among the sorted labels: the
  clients a, a + K, a + 2 K, ... get the parts with the most of its examples.
  An experiment makes these clients slow; who they are is known before any
  seed, so that delays can be part of a compiled program.

  Args:
    labels: i[n], the class of each example.
    num_clients: N > a.
    alpha, min_size: of `dirichlet`.
    affected: the label of the class.
    seed: of the NumPy generator.

  Returns:
    The parts of `dirichlet` in another order.

  Raises:
    UserError: no such label, too few clients, or what `dirichlet` raises.
  """
  labels = check_labels(labels, num_clients, min_size=min_size)
  classes = np.unique(labels)
  place = int(np.searchsorted(classes, affected))
  if place == classes.size or classes[place] != affected:
    raise UserError(
      f"affected_dirichlet: no example of class {affected}; there are "
      f"{', '.join(map(str, classes))}"
    )
  chosen = np.arange(place, num_clients, classes.size)
  if not chosen.size:
    raise UserError(
      f"affected_dirichlet: clients {place}, {place + classes.size}, ... hold "
      f"class {affected}, but there are {num_clients}: give at least "
      f"{place + 1}"
    )
  parts = dirichlet(
    labels, num_clients, alpha=alpha, min_size=min_size, seed=seed
  )
  held = np.array([np.sum(labels[part] == affected) for part in parts])
  ranked = np.argsort(-held, kind="stable")
  part_of = np.empty(num_clients, np.int64)
  part_of[chosen] = ranked[: chosen.size]
  others = np.setdiff1d(np.arange(num_clients), chosen)
  part_of[others] = np.sort(ranked[chosen.size :])
  return [parts[i] for i in part_of]
