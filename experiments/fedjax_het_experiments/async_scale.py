"""Asynchronous clients simulated per second: lazy waves against one by one.

First the schedules alone, on the host: 10,000 arrivals of every built-in
scheduler with 100 to 10,000 clients of exponential speeds, how long they take
and in how many waves they train.  Then the training: FedAsync that adds changes
(the hardest case, a merge an arrival), in waves and one by one, where one by
one is a single jitted program an arrival that trains, merges and sends out.
Both take turns in one process; medians of warm repeats.

MLP 784-64-10, one local epoch of batches of 20, SGD 0.1, Fashion-MNIST.

Command:
  fedjax-het async_scale
Minutes: see experiments/README.md (measured).
Expected: experiments/results/async_scale/.
"""

import functools
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from fedjax_het import models
from fedjax_het.algorithms import fed_avg
from fedjax_het.core import mesh
from fedjax_het.core.cohort import client_data
from fedjax_het.data import partition, sources
from fedjax_het.data.federated import federate
from fedjax_het.devices import asynchronous, profiles, waves
from fedjax_het.devices.dealing import batch_of, linear_of
from fedjax_het.devices.durations import durations
from fedjax_het.devices.events import Merge, Simulation, Task
from fedjax_het.devices.schedules import (
  FedAsync,
  FedAT,
  FedBuff,
  FedCompass,
  Synchronous,
)
from fedjax_het.training import run_async
from fedjax_het_experiments import _flags
from fedjax_het_experiments._bench_report import write_bench

_CLIENTS = flags.DEFINE_multi_integer(
  "async_scale_clients", [100, 1000, 10_000], "Clients there are.", 1
)
_IN_FLIGHT = flags.DEFINE_integer(
  "async_scale_in_flight", 1000, "Clients that train at a time, at most.", 1
)
_SCHEDULED = flags.DEFINE_integer(
  "async_scale_scheduled", 10_000, "Arrivals of the schedules alone.", 1
)
_TRAINED = flags.DEFINE_integer(
  "async_scale_trained", 4000, "Arrivals that are trained.", 1
)
_REPEATS = flags.DEFINE_integer(
  "async_scale_repeats", 3, "Warm timings of each; the median counts.", 1
)
_DATASET = "fashion_mnist"


class Problem(NamedTuple):
  """data: with devices;  weights: f64[N];  duration: of updates."""

  data: object
  weights: np.ndarray
  duration: object


def _algorithm(model):
  return fed_avg(model, optimizer=optax.sgd(0.1), batch_size=20)


def problem(dataset, model, clients: int) -> Problem:
  """Equal shares of at most 60 examples, exponential speeds."""
  size = min(60, len(dataset.train_y) // clients)
  spec = f"inner_dirichlet:0.3,size={size}"
  parts = partition.parse(spec, dataset.train_y, clients, 0)
  data = federate(dataset, parts, seed=0)
  data = data._replace(devices=profiles.parse("exponential", clients))
  return Problem(
    data,
    np.asarray(data.train.count, np.float64),
    durations(_algorithm(model), data),
  )


def schedulers(of: Problem):
  """Name -> a fresh scheduler, with as many clients at a time as allowed."""
  clients = len(of.weights)
  flight = min(clients, _IN_FLIGHT.value)
  speeds = np.asarray(of.data.devices.step_seconds)
  return {
    "synchronous": lambda: Synchronous(of.weights, cohort_size=flight),
    "FedAsync": lambda: FedAsync(of.weights, in_flight=flight),
    "FedBuff": lambda: FedBuff(of.weights, in_flight=flight),
    "FedAT": lambda: FedAT(of.weights, speeds, cohort_size=flight // 5),
    # Q_max is what an epoch allows: more steps would be measured wrongly
    "FedCompass": lambda: FedCompass(of.weights, min_steps=1, max_steps=3),
  }


def schedule_points(of: Problem) -> list[dict]:
  """How long 10,000 arrivals take on the host, and their waves."""
  points = []
  for name, make in schedulers(of).items():
    simulated, planned, items = [], [], []
    for _ in range(_REPEATS.value):
      start = time.perf_counter()
      for _ in Simulation(make(), of.duration, arrivals=_SCHEDULED.value):
        pass
      simulated.append(time.perf_counter() - start)
      start = time.perf_counter()
      items = list(_plan(make(), of, _SCHEDULED.value))
      planned.append(time.perf_counter() - start)
    sizes = [len(item.task) for item in items if isinstance(item, waves.Wave)]
    points.append(
      {
        "part": "schedule",
        "clients": len(of.weights),
        "scheduler": name,
        "seconds": simulated,
        "seconds with plan": planned,
        "waves": len(sizes),
        "wave size": statistics.mean(sizes),
      }
    )
  return points


def training_point(of: Problem, model) -> dict:
  """Waves against one by one for the same schedule."""
  flight = min(len(of.weights), _IN_FLIGHT.value)

  def make():
    return FedAsync(of.weights, in_flight=flight, rate=0.6, mix=False)

  in_waves, by_one = _in_waves(of, model, make), _one_by_one(of, model, make)
  got, want = in_waves(), by_one()  # compiles
  gap = max(
    float(jnp.abs(a - b).max())
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
  )
  seconds = {"waves": [], "one by one": []}
  for _ in range(_REPEATS.value):
    for name, contestant in (("waves", in_waves), ("one by one", by_one)):
      start = time.perf_counter()
      jax.block_until_ready(contestant())
      seconds[name].append(time.perf_counter() - start)
  items = _plan(make(), of, _TRAINED.value)
  sizes = [len(item.task) for item in items if isinstance(item, waves.Wave)]
  return {
    "part": "training",
    "clients": len(of.weights),
    "in flight": flight,
    "seconds": seconds,
    "wave size": statistics.mean(sizes),
    "largest difference of the models": gap,
  }


def _plan(scheduler, of, arrivals):
  simulation = Simulation(scheduler, of.duration, arrivals=arrivals)
  return waves.plan(simulation, scheduler)


def _in_waves(of, model, make):
  """Plans and trains: what `run_async` does, without looks and files."""
  several = jax.default_backend() == "cpu" and jax.device_count() > 1
  where = mesh.client_mesh() if several else None
  programs = run_async.compile_async(
    lambda _: _algorithm(model), model, mesh=where
  )
  slots = waves.slots_needed(_plan(make(), of, _TRAINED.value))
  slots = -(-slots // programs.devices) * programs.devices
  data = of.data if where is None else mesh.replicate(of.data, where)

  def run():
    scheduler = make()
    state = programs.init((), jax.random.key(0), scheduler.models, slots)
    if where is not None:
      state = asynchronous.spread(state, where)
    for item in _plan(scheduler, of, _TRAINED.value):
      if isinstance(item, waves.Merges):
        linear = linear_of(item, slots, programs.devices)
        state = programs.merge(state, linear)
      else:
        batch, _ = batch_of(item, slots, programs.devices, programs.chunk)
        state, _ = programs.wave((), state, data, batch)
    return asynchronous.global_model(state)

  return run


def _one_by_one(of, model, make):
  """One program an arrival: train, merge, send the same slot out again."""
  algorithm = _algorithm(model)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def arrive(weights, starts, key, data, task, client, steps, slot, rate):
    mine = client_data(data, client)
    mine = mine._replace(budget=jnp.minimum(mine.budget, steps))
    start = jax.tree.map(lambda leaf: leaf[slot], starts)
    own = jax.random.fold_in(key, task)
    change = algorithm.client(start, (), mine, own).message
    weights = jax.tree.map(lambda w, d: w + rate * d, weights, change)
    starts = jax.tree.map(lambda s, w: s.at[slot].set(w), starts, weights)
    return weights, starts

  init = jax.jit(
    lambda key, slots: asynchronous.init_state(algorithm, key, (1.0,), slots),
    static_argnums=1,
  )

  def run():
    scheduler = make()
    slots = min(len(of.weights), _IN_FLIGHT.value)
    state = init(jax.random.key(0), slots)
    weights = asynchronous.global_model(state)
    starts = jax.tree.map(
      lambda s, w: jnp.broadcast_to(w[None], s.shape).copy(),
      state.starts,
      weights,
    )
    tasks, slot, freed = {}, {}, list(range(slots))
    simulation = Simulation(scheduler, of.duration, arrivals=_TRAINED.value)
    for event in simulation:
      if isinstance(event, Task):
        tasks[event.id], slot[event.id] = event, freed.pop()
      elif isinstance(event, Merge):
        (number,) = event.tasks
        task, place = tasks.pop(number), slot.pop(number)
        freed.append(place)
        weights, starts = arrive(
          weights,
          starts,
          state.key,
          of.data,
          task.id,
          task.client,
          task.steps,
          place,
          float(event.changes[0, 0]),
        )
    return weights

  return run


def main(argv: list[str]) -> None:
  del argv
  started = time.monotonic()
  dataset = sources.load(_DATASET, _flags.DATA_DIR.value)
  model = models.build("mlp", dataset.train_x.shape[1:], dataset.num_classes)
  points = []
  for clients in _CLIENTS.value:
    of = problem(dataset, model, clients)
    points += schedule_points(of)
    points.append(training_point(of, model))
  write_bench(
    "Asynchronous schedules and lazy waves",
    ["clients", "what", "arrivals/s", "waves: mean size", "ratio"],
    [_row(point) for point in points],
    points,
    seconds=time.monotonic() - started,
    facts={
      "schedules": f"{_SCHEDULED.value} arrivals, exponential speeds, at most "
      f"{_IN_FLIGHT.value} clients at a time (FedCompass: all)",
      "training": f"{_TRAINED.value} arrivals of FedAsync, planning included; "
      "ratio: seconds one by one / in waves, medians of "
      f"{_REPEATS.value} in turns",
    },
  )


def _row(point: dict) -> list[str]:
  if point["part"] == "schedule":
    median = statistics.median(point["seconds"])
    return [
      f"{point['clients']:,}",
      f"schedule, {point['scheduler']}",
      f"{_SCHEDULED.value / median:,.0f}",
      f"{point['waves']}: {point['wave size']:.0f}",
      f"{median:.2f} s",
    ]
  waved, single = (
    statistics.median(point["seconds"][name])
    for name in ("waves", "one by one")
  )
  return [
    f"{point['clients']:,}",
    f"training, {point['in flight']:,} at a time",
    f"{_TRAINED.value / waved:,.0f}; one by one {_TRAINED.value / single:,.0f}",
    f"{point['wave size']:.0f}",
    f"{single / waved:.2f} x",
  ]


if __name__ == "__main__":
  _flags.run(main, unused=_flags.OF_A_RUN)
