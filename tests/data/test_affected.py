"""affected_dirichlet: dirichlet's parts, most of one class in known places."""

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import partition

LABELS = np.random.default_rng(0).choice([3, 7, 20], 900)


@pytest.mark.parametrize("affected, first", [(3, 0), (7, 1), (20, 2)])
def test_chosen_clients_hold_the_most_of_the_class(affected, first):
  parts = partition.affected_dirichlet(
    LABELS, 11, alpha=0.5, affected=affected, seed=4
  )
  held = [np.count_nonzero(LABELS[part] == affected) for part in parts]
  chosen = held[first::3]
  rest = [n for i, n in enumerate(held) if i % 3 != first]
  assert chosen == sorted(chosen, reverse=True)
  assert min(chosen) >= max(rest)
  plain = partition.dirichlet(LABELS, 11, alpha=0.5, min_size=2, seed=4)
  assert sorted(p.tolist() for p in parts) == sorted(p.tolist() for p in plain)


@pytest.mark.parametrize(
  "spec, clients, message",
  [
    ("affected_dirichlet:1", 9, "no example of class 0"),
    ("affected_dirichlet:1,affected=5", 9, "no example of class 5.*3, 7, 20"),
    ("affected_dirichlet:1,affected=20", 2, "at least 3"),
    ("affected_dirichlet:0,affected=3", 9, "alpha must be a positive number"),
  ],
)
def test_mistakes_are_named(spec, clients, message):
  with pytest.raises(UserError, match=message):
    partition.parse(spec, LABELS, clients)
