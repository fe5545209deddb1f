"""Lazy waves: an asynchronous schedule as few large batches of training.

Nothing trains until a merge needs it; then everything that was sent out and is
untrained trains in one wave.  Merges between two waves are linear in what is
known at the first, so many of them together are one matrix product,

  [models at the end; models sent out] = A M + B E0 + C D,

with M [K, P] the server's models, E0 [U, P] the starts and D [V, P] the changes
of the updates used.  Where an update lies in memory (its slot) is free again
once it is merged or dropped.

`plan` makes the waves and merges of a simulation on the host, `asynchronous`
runs them.  Which updates share a wave never changes a result: update i draws
from `fold_in(root key, i)`.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fedjax_het.devices.events import (
  Arrival,
  Drop,
  Event,
  Merge,
  Scheduler,
  Stop,
  Task,
)


class Wave(NamedTuple):
  """n updates to train together.

  task: i32[n], names the random stream;  client, steps: i32[n].
  slot: i32[n], where its start lies and its change goes.
  """

  task: np.ndarray
  client: np.ndarray
  steps: np.ndarray
  slot: np.ndarray


class Merges(NamedTuple):
  """Merges between two waves, as one linear map to L models.

  models: f64[L, K];  starts: f64[L, U];  changes: f64[L, V]: A, B and C.
    The first K of the L are the server's models afterwards.
  start_slots: i32[U];  change_slots: i32[V].
  sent: i32[J], which of the L each of J updates starts from.
  sent_slots: i32[J], where that start goes.
  """

  models: np.ndarray
  starts: np.ndarray
  changes: np.ndarray
  start_slots: np.ndarray
  change_slots: np.ndarray
  sent: np.ndarray
  sent_slots: np.ndarray


Item = Wave | Merges | Stop

# A product of r models with what they are made of takes O(r^2 P), one model
# after another O(r P) and r programs.  Measured on two cores for r = 8 to 512.
_ROWS = 31  # and model 0 itself: 32


def slots_needed(items: Iterable[Item]) -> int:
  """The most updates that are in memory at a time; plays the whole plan."""
  return 1 + max(
    (int(item.slot.max()) for item in items if isinstance(item, Wave)),
    default=0,
  )


def plan(simulation: Iterable[Event], scheduler: Scheduler) -> Iterator[Item]:
  """Waves and merges in the order in which they must run.

  Args:
    simulation: `events.Simulation` of the scheduler.
    scheduler: says how many models it keeps, and whether it looks at what
      clients report: then an update has trained before it arrives, with
      everything else that was sent out by then.

  Yields:
    `Wave`, `Merges`, and each `Stop` once the models are those of its time.
  """
  planner = _Planner(len(scheduler.models))
  for event in simulation:
    if isinstance(event, Task):
      planner.send(event)
    elif isinstance(event, Arrival):
      if scheduler.looks:
        yield from planner.train([event.task.id])
    elif isinstance(event, Merge):
      yield from planner.train(event.tasks)
      if planner.rows >= _ROWS:
        yield from planner.flush()
      planner.merge(event)
    elif isinstance(event, Drop):
      planner.forget(event.tasks)
    else:
      yield from planner.flush()
      yield event
  yield from planner.flush()


class _Planner:
  """Slots of updates, those that are untrained, and merges not yet run."""

  def __init__(self, models: int):
    self._count = models
    self._slot: dict[int, int] = {}  # task id -> slot
    self._free: list[int] = []
    self._untrained: dict[int, Task] = {}
    self._linear = _Linear(models, capacity=16)
    self._rows: list[_Row] = []  # models sent out since the last flush
    self._sent: dict[int, int] = {}  # slot -> row
    self._fresh = False  # whether the last row is model 0 as it is now

  @property
  def rows(self) -> int:
    """Models sent out since the last flush."""
    return len(self._rows)

  def send(self, task: Task) -> None:
    if not self._fresh:
      self._rows.append(self._linear.row(0))
      self._fresh = True
    slot = self._free.pop() if self._free else len(self._slot)
    self._slot[task.id] = slot
    self._untrained[task.id] = task
    self._sent[slot] = self._count + len(self._rows) - 1

  def train(self, tasks: Iterable[int]) -> Iterator[Item]:
    """Everything that is untrained, if one of `tasks` is."""
    if not any(task in self._untrained for task in tasks):
      return
    yield from self.flush()
    chosen = list(self._untrained.values())
    self._untrained.clear()
    columns = zip(
      *((t.id, t.client, t.steps, self._slot[t.id]) for t in chosen),
      strict=True,
    )
    yield Wave(*(np.array(column, np.int32) for column in columns))

  def merge(self, merge: Merge) -> None:
    self._linear.merge(merge, [self._slot[task] for task in merge.tasks])
    self._fresh = False
    self.forget(merge.tasks)

  def forget(self, tasks: Iterable[int]) -> None:
    """Frees the slots of merged or dropped updates."""
    for task in tasks:
      self._free.append(self._slot.pop(task))
      self._untrained.pop(task, None)

  def flush(self) -> Iterator[Merges]:
    """The merges since the last flush, if there are any."""
    if not self._sent and self._linear.is_identity:
      return
    rows = [*map(self._linear.row, range(self._count)), *self._rows]
    models = np.stack([row[0] for row in rows])
    starts, changes = np.zeros((2, len(rows), self._linear.capacity))
    for place, (_, start, change) in enumerate(rows):
      starts[place, : len(start)] = start
      changes[place, : len(change)] = change
    start_slots = np.flatnonzero(starts.any(0))
    change_slots = np.flatnonzero(changes.any(0))
    yield Merges(
      models,
      starts[:, start_slots],
      changes[:, change_slots],
      start_slots.astype(np.int32),
      change_slots.astype(np.int32),
      np.array(list(self._sent.values()), np.int32),
      np.array(list(self._sent), np.int32),
    )
    self._linear = _Linear(self._count, self._linear.capacity)
    self._rows, self._sent, self._fresh = [], {}, False


_Row = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Linear:
  """The server's K models as multiples of what was known at the last flush."""

  def __init__(self, models: int, capacity: int):
    self._models = np.eye(models)
    self._starts = np.zeros((models, capacity))
    self._changes = np.zeros((models, capacity))
    self.is_identity = True

  @property
  def capacity(self) -> int:
    return self._changes.shape[1]

  def merge(self, merge: Merge, slots: list[int]) -> None:
    self.is_identity = False
    while max(slots) >= self.capacity:
      self._starts = np.pad(self._starts, ((0, 0), (0, self.capacity)))
      self._changes = np.pad(self._changes, ((0, 0), (0, self.capacity)))
    if merge.keep is not None:
      self._models = merge.keep @ self._models
      self._starts = merge.keep @ self._starts
      self._changes = merge.keep @ self._changes
    self._changes[:, slots] += merge.changes
    if merge.models is not None:
      self._starts[:, slots] += merge.models
      self._changes[:, slots] += merge.models

  def row(self, model: int) -> _Row:
    """One model at this moment."""
    return (
      self._models[model].copy(),
      self._starts[model].copy(),
      self._changes[model].copy(),
    )
