"""Synchronous rounds: FedAvg, FedAvgM and FedNova in virtual time.

The server waits for everybody of a cohort, so a round lasts as long as its
slowest client.

References:
  McMahan et al., arXiv:1602.05629 (FedAvg).
  Hsu et al., arXiv:1909.06335 (FedAvgM).
  Wang et al.: Tackling the Objective Inconsistency Problem in Heterogeneous
  Federated Optimization, NeurIPS 2020, arXiv:2007.07481 (FedNova).
"""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import NO_BUDGET
from fedjax_het.devices.events import Merge, Send
from fedjax_het.devices.schedules._clients import (
  Idle,
  check_in_flight,
  check_positive,
  check_weights,
)


class Synchronous:
  """w' = w + rate m',  m' = momentum m + sum_k q_k (w_k - w).

  q_k = p_k over the cohort, p its weights normalised; with `normalise`,
  FedNova's q_k = p_k tau_eff / tau_k with tau_k the steps of client k and
  tau_eff = sum_k p_k tau_k.
  """

  looks = False

  def __init__(
    self,
    weights: Sequence[float],
    *,
    cohort_size: int | None = None,
    steps: int | Sequence[int] = NO_BUDGET,
    rate: float = 1.0,
    momentum: float = 0.0,
    normalise: bool = False,
    seed: int = 0,
  ):
    """Sets it up.

    Args:
      weights: f64[N], of the clients, e.g. their example counts.
      cohort_size: clients a round, drawn at random; None: everybody.
      steps: the most local steps, of all or of each client.
      rate: of the server.
      momentum: of the server, 0 for none.
      normalise: FedNova; needs the steps of each client.
      seed: of the draws.

    Raises:
      UserError: values out of range, or FedNova without steps.
    """
    self._weights = check_weights(weights)
    count = len(self._weights)
    self._cohort_size = check_in_flight(cohort_size, count)
    self._steps = np.broadcast_to(np.asarray(steps, np.int64), count)
    check_positive(rate=rate, steps=self._steps.min())
    if not 0 <= momentum < 1:
      raise UserError(f"momentum must be in [0, 1), got {momentum}")
    if normalise and self._steps.max() == NO_BUDGET:
      raise UserError("FedNova divides by local steps: give steps")
    self._rate, self._momentum, self._normalise = rate, momentum, normalise
    self._idle = Idle(count, seed)
    self._arrived = []
    self.models = (1.0, 0.0) if momentum else (1.0,)

  def start(self):
    return self._round()

  def arrive(self, now, task, reported):
    del now, reported
    self._arrived.append(task)
    if len(self._arrived) < self._cohort_size:
      return []
    done, self._arrived = self._arrived, []
    for each in done:
      self._idle.give_back(each.client)
    return [self._merge(done), *self._round()]

  def _round(self):
    cohort = [self._idle.draw() for _ in range(self._cohort_size)]
    return [Send(client, int(self._steps[client])) for client in cohort]

  def _merge(self, done):
    share = self._weights[[task.client for task in done]]
    share = share / share.sum()
    if self._normalise:
      steps = self._steps[[task.client for task in done]]
      share = share / steps * (share @ steps)
    ids = [task.id for task in done]
    if not self._momentum:
      return Merge(ids, self._rate * share[None])
    return Merge(
      ids,
      np.stack([self._rate * share, share]),
      keep=np.array([[1, self._rate * self._momentum], [0, self._momentum]]),
    )
