"""FedAsync and FedBuff: merge as updates come, one by one or K at a time.

References:
  Xie et al.: Asynchronous Federated Optimization, arXiv:1903.03934.
  Nguyen et al.: Federated Learning with Buffered Asynchronous Aggregation,
  AISTATS 2022, arXiv:2106.06639.
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
from fedjax_het.devices.staleness import Staleness, polynomial


class FedAsync:
  """Merges every update when it arrives; its client's place is filled at once.

  With a = rate s(tau), tau the versions since the client received its model,
  and w_k what it has become:

    w' = (1 - a) w + a w_k            (`mix`, the paper's)
    w' = w + a N p_k (w_k - w_start)  (otherwise: the change is added)
  """

  looks = False
  models = (1.0,)

  def __init__(
    self,
    weights: Sequence[float],
    *,
    in_flight: int | None = None,
    steps: int = NO_BUDGET,
    rate: float = 0.6,
    staleness: Staleness | None = None,
    mix: bool = True,
    seed: int = 0,
  ):
    """Sets it up.

    Args:
      weights: f64[N], of the clients; p_k is their normalised form.
      in_flight: clients that train at a time, filled up by random idle ones;
        None: everybody, always.
      steps: the most local steps.
      rate: alpha, at most 1 if models are mixed.
      staleness: s(tau), default `polynomial(0.5)`.
      mix: mix models, or add changes.
      seed: of the draws.

    Raises:
      UserError: values out of range.
    """
    weights = check_weights(weights)
    self._share = len(weights) * weights
    self._in_flight = check_in_flight(in_flight, len(weights))
    check_positive(rate=rate, steps=steps)
    if mix and rate > 1:
      raise UserError(f"mixing models with rate {rate}: give at most 1")
    self._steps, self._rate, self._mix = steps, rate, mix
    self._staleness = staleness or polynomial(0.5)
    self._idle = Idle(len(weights), seed)

  def start(self):
    return [self._next() for _ in range(self._in_flight)]

  def arrive(self, now, task, reported):
    del reported
    rate = self._rate * self._staleness(now.version - task.version)
    if self._mix:
      merge = Merge(
        [task.id],
        np.zeros((1, 1)),
        models=np.array([[rate]]),
        keep=np.array([[1 - rate]]),
      )
    else:
      merge = Merge([task.id], np.array([[rate * self._share[task.client]]]))
    self._idle.give_back(task.client)
    return [merge, self._next()]

  def _next(self):
    return Send(self._idle.draw(), self._steps)


class FedBuff:
  """Merges the last K updates together:  w' = w + rate / K sum_k s(tau_k) d_k.

  d_k is the change of client k times N p_k.
  """

  looks = False
  models = (1.0,)

  def __init__(
    self,
    weights: Sequence[float],
    *,
    buffer_size: int = 10,
    in_flight: int | None = None,
    steps: int = NO_BUDGET,
    rate: float = 1.0,
    staleness: Staleness | None = None,
    seed: int = 0,
  ):
    """Sets it up.

    Args:
      buffer_size: K.
      staleness: s(tau), tau when the buffer is merged; default
        `polynomial(0.5)`, the paper's 1 / sqrt(1 + tau).

    The other arguments and errors are those of `FedAsync`.
    """
    weights = check_weights(weights)
    self._share = len(weights) * weights
    self._in_flight = check_in_flight(in_flight, len(weights))
    check_positive(buffer_size=buffer_size, rate=rate, steps=steps)
    self._size, self._steps, self._rate = buffer_size, steps, rate
    self._staleness = staleness or polynomial(0.5)
    self._idle = Idle(len(weights), seed)
    self._buffer = []

  def start(self):
    return [self._next() for _ in range(self._in_flight)]

  def arrive(self, now, task, reported):
    del reported
    self._buffer.append(task)
    self._idle.give_back(task.client)
    actions = []
    if len(self._buffer) == self._size:
      each = [
        self._share[t.client] * self._staleness(now.version - t.version)
        for t in self._buffer
      ]
      ids = [t.id for t in self._buffer]
      scale = self._rate / self._size
      actions.append(Merge(ids, scale * np.array([each])))
      self._buffer = []
    return [*actions, self._next()]

  def _next(self):
    return Send(self._idle.draw(), self._steps)
