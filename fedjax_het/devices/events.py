"""Who finishes when: asynchronous schedules, simulated on the host.

Who arrives when does not depend on what is learnt, so a schedule can be played
before anything is trained.  A `Scheduler` is asked at the start, at every
arrival and at every alarm it has set, and answers with actions:

  Send   a client starts from the model of this instant;
  Merge  the server's models change by a linear map of arrived updates;
  Drop   arrived updates are thrown away;
  Wake   ask me again at this time.

`simulate` plays it with an event heap and yields what happens; `waves` turns
that into batches of training.  It also keeps the books: every update that was
sent out is merged once, dropped once, waiting, or still on its way.
"""

import collections
import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fedjax_het.core.errors import UserError


class Task(NamedTuple):
  """One local training.

  id: numbered in the order of sending; names its random stream too.
  client: who trains.
  steps: the most local steps it may do.
  version: of the model that it starts from, the number of merges before.
  sent, arrives: virtual seconds.
  tag: the scheduler's own, e.g. a group.
  """

  id: int
  client: int
  steps: int
  version: int
  sent: float
  arrives: float
  tag: Hashable = None


class Send(NamedTuple):
  """Lets a client train from the present model; see `Task`."""

  client: int
  steps: int
  tag: Hashable = None


class Merge(NamedTuple):
  """Changes the server's K models M [K, P] by n updates.

  M' = keep M + changes D + models E, with D [n, P] the updates' changes and E
  [n, P] the trained models themselves (where each started plus its change).

  tasks: ids of the n updates, arrived and not used before.
  changes: f64[K, n].
  models: f64[K, n], or None for zeros.
  keep: f64[K, K], or None for the identity.
  """

  tasks: Sequence[int]
  changes: np.ndarray
  models: np.ndarray | None = None
  keep: np.ndarray | None = None


class Drop(NamedTuple):
  """Throws arrived updates away."""

  tasks: Sequence[int]


class Wake(NamedTuple):
  """Calls `Scheduler.wake` with `tag` at the time `at`, not before now.

  Arrivals at the same time go first.
  """

  at: float
  tag: Hashable = None


class Stop(NamedTuple):
  """A time at which the caller wants to look at the models; its number."""

  number: int
  at: float


class Arrival(NamedTuple):
  """An update is about to arrive: what it reports must be known now."""

  task: Task


Action = Send | Merge | Drop | Wake
Event = Task | Arrival | Merge | Drop | Stop


class Now(NamedTuple):
  """seconds: virtual time;  version: merges so far."""

  seconds: float
  version: int


class Scheduler(Protocol):
  """Decides who trains when and how updates are merged; has a state.

  models: for each of the K models that the server keeps its start as a multiple
    of the initial model: 1, or 0 for a momentum.  Model 0 is what clients
    receive and what is evaluated.
  looks: whether it needs what clients report (else `arrive` gets None).
  """

  models: tuple[float, ...]
  looks: bool

  def start(self) -> Iterable[Action]:
    """What to do at time 0."""

  def arrive(
    self, now: Now, task: Task, reported: float | None
  ) -> Iterable[Action]:
    """What to do when an update arrives; `reported` is its mean loss."""

  def wake(self, now: Now, tag: Hashable) -> Iterable[Action]:
    """What to do when an alarm rings; only for who sends a `Wake`."""


class Books(NamedTuple):
  """Where the updates are: the parts of `sent` add up to it."""

  sent: int
  merged: int
  dropped: int
  waiting: int
  on_the_way: int


class Simulation:
  """Plays a scheduler; iterate over it once, then read `books`.

  Yields, in order: each `Task` when it is sent, its `Arrival`, and `Merge`,
  `Drop` and `Stop` as they happen.
  """

  def __init__(
    self,
    scheduler: Scheduler,
    duration: Callable[[int, int, int, float], float],
    *,
    stops: Sequence[float] = (),
    arrivals: int | None = None,
    reported: Callable[[int], float] | None = None,
  ):
    """Sets it up; nothing runs before the iteration.

    Args:
      scheduler: a fresh one.
      duration: (task id, client, steps, now) -> seconds from sending the model
        to the arrival of the update (`durations`).
      stops: increasing times at which to yield a `Stop`; the last one ends it.
      arrivals: ends it after this many arrivals, if that comes first.
      reported: task id -> its mean loss, for a scheduler that looks; asked
        after its `Arrival` was yielded.

    Raises:
      UserError: neither stops nor arrivals, or times that do not increase.
    """
    if not stops and arrivals is None:
      raise UserError("a schedule needs an end: give stops or arrivals")
    if any(b <= a for a, b in itertools.pairwise([0.0, *stops])):
      raise UserError(f"stops must be positive and increase, got {list(stops)}")
    if scheduler.looks and reported is None:
      raise UserError(
        f"{type(scheduler).__name__} needs what clients report: run it with "
        "waves.run, which trains as it goes"
      )
    self._scheduler, self._duration = scheduler, duration
    self._stops, self._arrivals = list(stops), arrivals
    self._reported = reported
    self._heap: list[tuple[float, int, int, object]] = []
    self._sequence = itertools.count()
    self._outbox: list[Send] = []
    self._version = self._sent = 0
    self._arrived: set[int] = set()  # neither merged nor dropped yet
    self._fates: collections.Counter = collections.Counter()
    self.seconds = 0.0  # virtual time of the latest event

  @property
  def books(self) -> Books:
    """Where the updates are at this moment of the simulation."""
    merged, dropped = self._fates[Merge], self._fates[Drop]
    waiting = len(self._arrived)
    way = self._sent - merged - dropped - waiting
    return Books(self._sent, merged, dropped, waiting, way)

  def __iter__(self) -> Iterator[Event]:
    scheduler, left = self._scheduler, self._arrivals
    for number, at in enumerate(self._stops):
      self._push(at, _STOP, Stop(number, at))
    seconds = self.seconds
    yield from self._do(seconds, scheduler.start())
    while self._heap or self._outbox:
      if not self._heap or self._heap[0][0] > seconds:
        # all that arrived at one instant is merged before anything is sent
        outbox, self._outbox = self._outbox, []
        for send in outbox:
          yield self._send(seconds, send)
      seconds, kind, _, what = heapq.heappop(self._heap)
      self.seconds = seconds
      now = Now(seconds, self._version)
      if kind == _STOP:
        yield what
        if what.number == len(self._stops) - 1:
          return
      elif kind == _WAKE:
        yield from self._do(seconds, scheduler.wake(now, what))
      else:
        yield Arrival(what)
        self._arrived.add(what.id)
        loss = self._reported(what.id) if scheduler.looks else None
        yield from self._do(seconds, scheduler.arrive(now, what, loss))
        if left is not None:
          left -= 1
          if left == 0:
            return
    raise UserError(
      f"{type(scheduler).__name__} stopped at {seconds:g} s with nobody on the "
      "way: a scheduler must keep at least one client busy"
    )

  def _do(self, seconds: float, actions: Iterable[Action]) -> Iterator[Event]:
    for action in actions:
      if isinstance(action, Send):
        self._outbox.append(action)
      elif isinstance(action, Wake):
        self._push(max(action.at, seconds), _WAKE, action.tag)
      else:
        self._use(action)
        self._version += isinstance(action, Merge)
        yield action

  def _send(self, seconds: float, send: Send) -> Task:
    number, self._sent = self._sent, self._sent + 1
    lasts = self._duration(number, send.client, send.steps, seconds)
    arrives = seconds + lasts
    task = Task(
      number, send.client, send.steps, self._version, seconds, arrives, send.tag
    )
    self._push(arrives, _ARRIVAL, task)
    return task

  def _use(self, action: Merge | Drop) -> None:
    for task in action.tasks:
      if task not in self._arrived:
        raise ValueError(
          f"update {task} is merged or dropped before it arrived, or twice"
        )
      self._arrived.remove(task)
    self._fates[type(action)] += len(action.tasks)

  def _push(self, at: float, kind: int, what: object) -> None:
    # ties: arrivals, then alarms, then stops, each in the order they were set
    heapq.heappush(self._heap, (at, kind, next(self._sequence), what))


_ARRIVAL, _WAKE, _STOP = range(3)
