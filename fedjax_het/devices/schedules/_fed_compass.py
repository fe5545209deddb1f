"""FedCompass: clients get as many steps as makes groups arrive together.

The scheduler measures each client's speed S_i (seconds a step, sending and
receiving included) and gives it between Q_min and Q_max local steps, so that
clients of a group finish at about the same time T_exp.  A group is merged when
all its members are in, or at its latest time T_lat; who comes later waits in a
buffer for the next merge and is never lost.

Departures from the released code (APPFL/FedCompass): s(tau) has the sign of the
paper, (1 + tau)^-a (the release amplifies stale updates: `polynomial(-0.5)`
reproduces it); the buffer of late updates is a list (the release keys it by
client and loses an update when that client is late again); and time is virtual.

References:
  Li et al.: FedCompass: Efficient Cross-Silo Federated Learning on
  Heterogeneous Client Devices using a Computing Power-Aware Scheduler, ICLR
  2024, arXiv:2309.14675.
"""

import math
from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.devices.events import Merge, Send, Wake
from fedjax_het.devices.schedules._clients import check_positive, check_weights
from fedjax_het.devices.staleness import Staleness, polynomial

_ALONE = -1  # the group of a client's first task


class _Group:
  """expected, latest: T_exp, T_lat.  members: clients still training."""

  def __init__(self, expected: float, latest: float):
    self.expected, self.latest = expected, latest
    self.members: set[int] = set()
    self.fastest = math.inf  # seconds a step of its fastest member
    self.arrived = []

  def join(self, client: int, speed: float) -> None:
    self.members.add(client)
    self.fastest = min(self.fastest, speed)


class FedCompass:
  """w' = w + sum_i rate p_i s(tau_i) (w_i - w_start_i) over a group.

  tau_i counts versions of w between sending and merging; p_i are the clients'
  normalised weights.
  """

  looks = False
  models = (1.0,)

  def __init__(
    self,
    weights: Sequence[float],
    *,
    min_steps: int = 20,
    max_steps: int = 100,
    slack: float = 1.2,
    rate: float = 0.9,
    staleness: Staleness | None = None,
    smoothing: float = 0.1,
  ):
    """Sets it up; all clients train all the time.

    Args:
      weights: f64[N], of the clients.
      min_steps, max_steps: Q_min, Q_max.  The method's `epochs` must allow
        Q_max steps to every client, or speeds are measured wrongly.
      slack: lambda, T_lat = now + lambda (T_exp - now) at a group's birth.
      rate: alpha.
      staleness: s(tau), default `polynomial(0.5)`.
      smoothing: share of the old speed in S_i <- share S_i + (1 - share) s.

    Raises:
      UserError: values out of range.
    """
    self._weights = check_weights(weights)
    check_positive(rate=rate, min_steps=min_steps)
    if max_steps < min_steps:
      raise UserError(
        f"min_steps {min_steps} above max_steps {max_steps}: swap them"
      )
    if slack < 1:
      raise UserError(
        f"slack {slack}: the latest time is not before the "
        "expected one, give at least 1"
      )
    if not 0 <= smoothing < 1:
      raise UserError(f"smoothing must be in [0, 1), got {smoothing}")
    self._low, self._high, self._slack = min_steps, max_steps, slack
    self._rate, self._smoothing = rate, smoothing
    self._staleness = staleness or polynomial(0.5)
    self._speed: dict[int, float] = {}
    self._groups: dict[int, _Group] = {}
    self._late = []
    self._next_group = 0

  def start(self):
    clients = range(len(self._weights))
    return [Send(client, self._high, _ALONE) for client in clients]

  def arrive(self, now, task, reported):
    del reported
    self._measure(now.seconds, task)
    if task.tag == _ALONE:
      merge = self._merge(now, [task])
      return [merge, *self._assign(now.seconds, [task.client])]
    group = self._groups.get(task.tag)
    if group is None:  # merged without it
      self._late.append(task)
      return self._assign(now.seconds, [task.client])
    group.members.remove(task.client)
    group.arrived.append(task)
    if group.members:
      return []
    return self._close(now, task.tag)

  def wake(self, now, tag):
    """A group's latest time has come; `tag` is its number."""
    if tag not in self._groups:
      return []
    return self._close(now, tag)

  def _measure(self, seconds, task):
    speed = (seconds - task.sent) / task.steps
    if task.client in self._speed:
      old = self._smoothing * self._speed[task.client]
      speed = old + (1 - self._smoothing) * speed
    self._speed[task.client] = speed

  def _close(self, now, number):
    """Merges a group with everybody who was late, and sends it out again."""
    group = self._groups.pop(number)
    if not group.arrived:
      return []  # all its members are late
    merge = self._merge(now, [*self._late, *group.arrived])
    self._late = []
    clients = [task.client for task in group.arrived]
    return [merge, *self._assign(now.seconds, clients)]

  def _merge(self, now, tasks):
    each = [
      self._rate
      * self._weights[task.client]
      * self._staleness(now.version - task.version)
      for task in tasks
    ]
    return Merge([task.id for task in tasks], np.array([each]))

  def _assign(self, seconds, clients):
    """Finds a group for each client, the fastest first."""
    actions = []
    for client in sorted(clients, key=lambda c: (self._speed[c], c)):
      number, steps = self._join(seconds, self._speed[client])
      if number is None:
        steps = self._steps_of_new_group(seconds, self._speed[client])
        number, self._next_group = self._next_group, self._next_group + 1
        lasts = steps * self._speed[client]
        latest = seconds + self._slack * lasts
        self._groups[number] = _Group(seconds + lasts, latest)
        actions.append(Wake(latest, number))
      self._groups[number].join(client, self._speed[client])
      actions.append(Send(client, steps, number))
    return actions

  def _join(self, seconds, speed):
    """(group, steps) of the group that lets it do most, or (None, 0)."""
    best, most = None, 0
    for number, group in self._groups.items():
      steps = math.floor((group.expected - seconds) / speed)
      if max(self._low, most + 1) <= steps <= self._high:
        best, most = number, steps
    return best, most

  def _steps_of_new_group(self, seconds, speed):
    """So that it can meet, at its end, a group after that one's next turn."""
    fitting = []
    for group in self._groups.values():
      if seconds < group.latest:
        until = group.latest + group.fastest * self._high
        steps = math.floor((until - seconds) / speed)
        if steps <= self._high:
          fitting.append(steps)
    return max(max(fitting, default=self._high), self._low)
