"""FedAT: synchronous rounds inside tiers of equal speed, tiers asynchronous.

References:
  Chai et al.: FedAT: A High-Performance and Communication-Efficient Federated
  Learning System with Asynchronous Tiers, SC 2021, arXiv:2010.05958.
"""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import NO_BUDGET
from fedjax_het.devices.events import Merge, Send
from fedjax_het.devices.schedules._clients import (
  Idle,
  check_positive,
  check_weights,
)


class FedAT:
  """Tier m averages its clients' models into its own w_m; the global model is

    w = sum_m T_{M + 1 - m} / sum T  w_m,

  T_m the updates of tier m so far: the tier that updates least counts as the
  one that updates most.  Clients of every tier start from w.

  A tier's initial model counts as its first update, so that no weight is 0
  before everybody has been heard (the paper leaves the start open).
  """

  looks = False

  def __init__(
    self,
    weights: Sequence[float],
    speeds: Sequence[float],
    *,
    tiers: int = 5,
    cohort_size: int | None = None,
    steps: int = NO_BUDGET,
    seed: int = 0,
  ):
    """Sets it up.

    Args:
      weights: f64[N], of the clients.
      speeds: f64[N], seconds that each takes for its work, known beforehand
        (e.g. one update measured); tiers are equal parts of their order.
      tiers: M.
      cohort_size: clients a round in each tier; None: the whole tier.
      steps: the most local steps.
      seed: of the draws.

    Raises:
      UserError: more tiers than clients, or values out of range.
    """
    self._weights = check_weights(weights)
    count = len(self._weights)
    if len(speeds) != count:
      raise UserError(f"{len(speeds)} speeds for {count} clients: one each")
    if not 1 <= tiers <= count:
      raise UserError(f"{tiers} tiers of {count} clients: give 1 to {count}")
    check_positive(steps=steps)
    order = np.argsort(np.asarray(speeds), kind="stable")
    self._members = np.array_split(order, tiers)
    smallest = min(len(part) for part in self._members)
    if cohort_size is not None and not 1 <= cohort_size <= smallest:
      raise UserError(
        f"{cohort_size} clients a round in tiers of {smallest}: give 1 to "
        f"{smallest}, or fewer tiers"
      )
    self._cohort_size, self._steps = cohort_size, steps
    self._idle = [
      Idle(len(part), seed + m) for m, part in enumerate(self._members)
    ]
    self._arrived = [[] for _ in range(tiers)]
    self._cohorts = [0] * tiers
    self._updates = np.ones(tiers)
    self.models = (1.0,) * (1 + tiers)

  def start(self):
    return [send for m in range(len(self._members)) for send in self._round(m)]

  def arrive(self, now, task, reported):
    del now, reported
    tier, place = task.tag
    self._arrived[tier].append(task)
    self._idle[tier].give_back(place)
    if len(self._arrived[tier]) < self._cohorts[tier]:
      return []
    done, self._arrived[tier] = self._arrived[tier], []
    self._updates[tier] += 1
    return [self._merge(tier, done), *self._round(tier)]

  def _round(self, tier):
    members = self._members[tier]
    size = self._cohorts[tier] = self._cohort_size or len(members)
    places = [self._idle[tier].draw() for _ in range(size)]
    return [
      Send(int(members[place]), self._steps, (tier, place)) for place in places
    ]

  def _merge(self, tier, done):
    """Model 0 is the global one, model 1 + m that of tier m."""
    share = self._weights[[task.client for task in done]]
    share = share / share.sum()
    counts = self._updates[::-1] / self._updates.sum()
    models = np.zeros((len(self.models), len(done)))
    models[1 + tier] = share
    models[0] = counts[tier] * share
    keep = np.eye(len(self.models))
    keep[1 + tier] = 0
    keep[0] = counts @ keep[1:]
    return Merge(
      [task.id for task in done], np.zeros_like(models), models, keep
    )
