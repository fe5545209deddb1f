"""The host loop of asynchronous runs: plan, train in waves, merge, keep.

A block of `training.run` is here what happens between two looks at the model.
A resumed run plays the schedule again up to its checkpoint (seconds) without
training, and goes on bit for bit.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_het.core import evaluate, wire
from fedjax_het.core import mesh as meshes
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, FederatedData, Key, Model, PyTree
from fedjax_het.devices import asynchronous, waves
from fedjax_het.devices.asynchronous import AsyncState, Linear
from fedjax_het.devices.dealing import batch_of, linear_of
from fedjax_het.devices.durations import Duration
from fedjax_het.devices.events import Scheduler, Simulation, Stop
from fedjax_het.devices.waves import Merges
from fedjax_het.training import run
from fedjax_het.training.metrics import read_jsonl


class Programs(NamedTuple):
  """The compiled parts of runs that differ in hyper-parameters and schedule.

  check: (hyper-parameters, data) -> None, raises a `UserError` for a method
    that cannot run asynchronously.
  init: (hyper-parameters, key, models, slots) -> AsyncState.
  wave: (hyper-parameters, state, data, Batch) -> (state, reports).
  merge: (state, Linear) -> state.
  judge: (state, data) -> dict of figures.
  chunk: updates vmapped together.
  mesh: devices that a wave is spread over, or None.
  """

  check: Callable[[PyTree, FederatedData], None]
  init: Callable[..., AsyncState]
  wave: Callable[..., tuple[AsyncState, dict]]
  merge: Callable[[AsyncState, Linear], AsyncState]
  judge: Callable[[AsyncState, FederatedData], dict]
  chunk: int
  mesh: Mesh | None

  @property
  def devices(self) -> int:
    return 1 if self.mesh is None else self.mesh.size


def compile_async(
  build: Callable[[PyTree], Algorithm],
  model: Model,
  *,
  judge: Callable[[Any, FederatedData], dict] | None = None,
  chunk: int | None = None,
  mesh: Mesh | None = None,
) -> Programs:
  """Jits the parts of an asynchronous run; runs that share them compile once.

  Args:
    build: hyper-parameters, which may be traced -> the algorithm.
    model: the network.
    judge: (params, data) -> dict of figures; default: accuracy and loss of the
      global model on the held-out data.
    chunk: the most updates vmapped together; None: 1 on a CPU (see
      `core.cohort`), else 64.
    mesh: devices to spread a wave over, or None.
  """
  if chunk is None:
    chunk = 1 if jax.default_backend() == "cpu" else 64

  def usual(params, data):
    accuracy, loss = evaluate.heldout(model, params, data.heldout)
    return {"accuracy": accuracy, "loss": loss}

  def wave(hyper, state, data, batch):
    return asynchronous.train_wave(
      build(hyper), state, data, batch, chunk=chunk, mesh=mesh
    )

  def init(hyper, key, models, slots):
    return asynchronous.init_state(build(hyper), key, models, slots)

  def look(state, data):
    return (judge or usual)(asynchronous.global_model(state), data)

  return Programs(
    lambda hyper, data: asynchronous.check(build(hyper), data),
    jax.jit(init, static_argnums=(2, 3)),
    jax.jit(wave, donate_argnums=1),
    jax.jit(functools.partial(asynchronous.merge, mesh=mesh), donate_argnums=0),
    jax.jit(look),
    chunk,
    mesh,
  )


def train(
  programs: Programs,
  hyper: PyTree,
  make_scheduler: Callable[[], Scheduler],
  data: FederatedData,
  *,
  duration: Duration,
  key: Key,
  stops: Sequence[float],
  slots: int | None = None,
  **options: Any,
) -> run.RunResult:
  """Runs an asynchronous schedule and keeps its results.

  Args:
    programs: of `compile_async`.
    hyper: the hyper-parameters of this run, arrays.
    make_scheduler: makes a fresh scheduler.
    data: the federated data set, with devices.
    duration: how long each update takes (`durations`).
    key: the run's root key.
    stops: virtual seconds at which the model is judged and the state saved.
    slots: updates that may be in memory at a time; counted beforehand unless
      the scheduler looks at what clients report.
    **options: workdir, config, resume, overwrite, progress, name, ... of
      `training.run.train`, which a block is a stop for.

  Returns:
    A `RunResult`; records hold at each stop loss (mean of the updates trained
    since the last one, if any were), sent, merged, waiting, up_bytes,
    down_bytes (since the last one; updates that the scheduler dropped were sent
    too), dropped and dropped_clients (updates that were not finite), waves, and
    "eval/...".

  Raises:
    UserError: a method that cannot run asynchronously, slots that are missing
      or do not suffice, and whatever `training.run.train` raises.
  """
  programs.check(hyper, data)
  scheduler = make_scheduler()
  if slots is None:
    if scheduler.looks:
      raise UserError(
        "this scheduler looks at what clients report, so nobody knows before "
        "how many updates are in memory at a time: give slots"
      )
    dry = Simulation(make_scheduler(), duration, stops=stops)
    slots = waves.slots_needed(waves.plan(dry, scheduler))
  slots = -(-slots // programs.devices) * programs.devices
  state = programs.init(hyper, key, scheduler.models, slots)
  if programs.mesh is not None:
    state = asynchronous.spread(state, programs.mesh)
    data = meshes.replicate(data, programs.mesh)
  path = pathlib.Path(options["workdir"], run.METRICS)
  known = _reported(path) if options.get("resume") and path.exists() else {}
  player = _Player(programs, hyper, scheduler, data, duration, stops, known)
  return run.train(
    player.block,
    state,
    lambda number: number,
    rounds_per_block=1,
    num_blocks=len(stops),
    summarise=lambda rounds: rounds,
    jit=False,
    **options,
  )


class _Player:
  """Plays a schedule block by block; what it holds, a resume makes again."""

  def __init__(
    self, programs, hyper, scheduler, data, duration, stops, reported
  ):
    self._programs, self._hyper, self._data = programs, hyper, data
    self._looks = scheduler.looks
    self._reported = reported
    self._simulation = Simulation(
      scheduler, duration, stops=stops, reported=self._reported.__getitem__
    )
    self._items: Iterator = waves.plan(self._simulation, scheduler)
    self._next = 0
    self._before = self._simulation.books

  def block(self, state: AsyncState, number: int) -> tuple[AsyncState, dict]:
    """Everything up to stop `number`."""
    while self._next < number:  # done before a resume
      self._skip()
    trained, losses, bad, count = [], [], [], 0
    for item in self._items:
      if isinstance(item, Stop):
        break
      if isinstance(item, Merges):
        linear = linear_of(item, _slots(state), self._programs.devices)
        state = self._programs.merge(state, linear)
        continue
      count += 1
      batch, place = batch_of(
        item, _slots(state), self._programs.devices, self._programs.chunk
      )
      state, reports = self._programs.wave(
        self._hyper, state, self._data, batch
      )
      reports = {k: np.asarray(v)[place] for k, v in reports.items()}
      trained += item.task.tolist()
      losses += reports["loss"].tolist()
      bad += item.client[~reports["ok"]].tolist()
      if self._looks:
        self._reported.update(zip(trained, losses, strict=True))
    self._next += 1
    figures = jax.device_get(self._programs.judge(state, self._data))
    figures["seconds"] = item.at
    rounds = self._books(state) | {
      "waves": count,
      "dropped": len(bad),
      "dropped_clients": _one(bad),
    }
    if losses:  # nothing may have been trained since the last look
      rounds["loss"] = np.mean(losses)
    if self._looks:
      rounds |= {"tasks": _one(trained), "task_losses": _one(losses)}
    rounds = {name: np.asarray(value)[None] for name, value in rounds.items()}
    return state, {"rounds": rounds, "eval": figures}

  def _skip(self) -> None:
    for item in self._items:
      if isinstance(item, Stop):
        self._next += 1
        self._before = self._simulation.books
        return

  def _books(self, state) -> dict[str, int]:
    old, new = self._before, self._simulation.books
    self._before = new
    sent = new.sent - old.sent
    arrived = sent - (new.on_the_way - old.on_the_way)
    model = wire.nbytes(asynchronous.global_model(state))
    return {
      "sent": sent,
      "merged": new.merged - old.merged,
      "waiting": new.waiting,
      "up_bytes": arrived * model,
      "down_bytes": sent * model,
    }


def _slots(state: AsyncState) -> int:
  return jax.tree.leaves(state.starts)[0].shape[0]


def _one(values: list) -> np.ndarray:
  """A list as one object, whatever its length."""
  out = np.empty((), object)
  out[()] = values
  return out


def _reported(path) -> Mapping[int, float]:
  """Losses of updates that a run has logged, for its resume."""
  return {
    task: loss
    for record in read_jsonl(path)
    for task, loss in zip(
      record.get("tasks", ()), record.get("task_losses", ()), strict=True
    )
  }
