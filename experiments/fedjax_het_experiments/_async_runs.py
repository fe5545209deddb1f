"""Compares schedulers in virtual time: each tuned with equal effort, then run.

All methods share one compiled client program, FedProx with its rate and mu as
data (mu = 0 is FedAvg).  A trial is (client rate, the method's own knob).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms import fed_prox
from fedjax_het.core import evaluate, mesh, rounds
from fedjax_het.core.types import FederatedData
from fedjax_het.devices import profiles
from fedjax_het.devices.durations import Duration, durations
from fedjax_het.devices.events import Merge, Scheduler, Simulation, Task
from fedjax_het.training import run_async
from fedjax_het.training.arms import Arm, arm_from_records
from fedjax_het_experiments import _dealing
from fedjax_het_experiments._comparison import TUNE_SEEDS
from fedjax_het_experiments._setting import Setting


class Problem(NamedTuple):
  """One seed's clients.

  data: with devices.  duration: of updates.
  weights: f64[N], example counts.
  speeds: f64[N], seconds that each takes for `max_steps`, without jitter.
  horizon: seconds, of so many rounds of FedAvg with everybody.
  seed: of data, fleet and draws.
  """

  data: FederatedData
  duration: Duration
  weights: np.ndarray
  speeds: np.ndarray
  horizon: float
  seed: int


class Contender(NamedTuple):
  """A way to run clients in time.

  name: as shown.
  schedule: (problem, knob) -> a fresh scheduler.
  knobs: values of its own hyper-parameter to try; all have as many.
  proximal: the knob is FedProx's mu and not the scheduler's.
  """

  name: str
  schedule: Callable[[Problem, float], Scheduler]
  knobs: tuple[float, ...]
  proximal: bool = False


class Work(NamedTuple):
  """What clients do: max_steps a task, in batches of batch_size.

  rounds: of FedAvg that a run lasts;  looks: how often the model is judged.
  rates: learning rates of the clients to try.
  """

  max_steps: int
  batch_size: int
  rounds: int
  looks: int
  rates: tuple[float, ...]


def deal(setting: Setting, seeds: Sequence[int]) -> dict[int, FederatedData]:
  """Each seed's clients over one store of examples, rows padded alike."""
  data = _dealing.deal(setting, seeds)
  return {s: _dealing.of_seed(data, place) for place, s in enumerate(seeds)}


def problems(
  setting: Setting,
  dealt: Mapping[int, FederatedData],
  fleet: str,
  work: Work,
  seeds: Sequence[int],
) -> list[Problem]:
  """The problem of each seed, with a fleet of its own."""
  return [_problem(setting, fleet, work, dealt[s], s) for s in seeds]


def _problem(setting, fleet, work, data, seed) -> Problem:
  devices = profiles.parse(fleet, setting.num_clients, seed)
  data = data._replace(devices=devices)
  algorithm = _algorithm(setting, work)(jnp.array([0.1, 0.0]))
  even = data._replace(
    devices=devices._replace(
      compute_jitter=jnp.zeros(setting.num_clients),
      network_jitter=jnp.zeros(setting.num_clients),
    )
  )
  exact = durations(algorithm, even)
  speeds = np.array(
    [exact(0, c, work.max_steps, 0.0) for c in range(setting.num_clients)]
  )
  return Problem(
    data,
    durations(algorithm, data, seed=seed),
    np.asarray(data.train.count, np.float64),
    speeds,
    work.rounds * float(speeds.max()),
    seed,
  )


def _algorithm(setting: Setting, work: Work):
  def build(hyper):
    return fed_prox(
      setting.model,
      mu=hyper[1],
      optimizer=optax.sgd(hyper[0]),
      batch_size=work.batch_size,
      epochs=work.max_steps,  # a task ends by its steps, never by its data
    )

  return build


def compiled(setting: Setting, work: Work) -> run_async.Programs:
  """The programs of all runs of a comparison."""
  build = _algorithm(setting, work)
  usual = evaluate.make_evaluate(
    build(jnp.array([0.1, 0.0]))._replace(global_params=lambda params: params),
    setting.model,
  )

  def judge(params, data):
    state = rounds.TrainState(
      params, (), jax.random.key(0), jnp.int32(0), jnp.float32(0)
    )
    return usual(state, data)

  several = jax.default_backend() == "cpu" and jax.device_count() > 1
  return run_async.compile_async(
    build,
    setting.model,
    judge=judge,
    mesh=mesh.client_mesh() if several else None,
  )


class Found(NamedTuple):
  """arms: one a contender;  trials: what was chosen, (rate, knob)."""

  arms: list[Arm]
  trials: Mapping[str, tuple[float, float]]


def compare(
  setting: Setting,
  dealt: Mapping[int, FederatedData],
  contenders: Sequence[Contender],
  fleet: str,
  work: Work,
  programs: run_async.Programs,
  *,
  seeds: Sequence[int],
  tune_seeds: int,
) -> Found:
  """Tunes every contender on seeds of its own and runs it on `seeds`.

  A trial is judged by the mean, over the looks, of the clients' accuracy on
  their own test splits: fast and good both count.  `Arm.rounds` are FedAvg's
  rounds in the same time.
  """
  name = fleet.partition(",")[0].replace(":", "_").replace("/", "_")
  trial = [TUNE_SEEDS + i for i in range(tune_seeds)]
  tuning = problems(setting, dealt, fleet, work, trial)
  final = problems(setting, dealt, fleet, work, seeds)
  arms, trials = [], {}
  for contender in contenders:
    grid = [(r, k) for r in work.rates for k in contender.knobs]
    score = [0.0] * len(grid)
    for place, trial in enumerate(grid):
      for problem in tuning:
        records = _run(
          setting, work, programs, contender, problem, trial, f"{name}/tune"
        )
        each = [r["eval/client_mean"] for r in records if "eval/loss" in r]
        score[place] += float(np.nan_to_num(np.mean(each), nan=-1.0))
    middle = len(contender.knobs) // 2
    chosen = grid[int(np.argmax(score))] if tuning else grid[middle]
    trials[contender.name] = chosen
    runs = [
      _run(setting, work, programs, contender, problem, chosen, f"{name}/final")
      for problem in final
    ]
    arm = arm_from_records(contender.name, *runs)
    share = arm.rounds / work.looks
    arms.append(arm._replace(rounds=work.rounds * share))
  return Found(arms, trials)


def _run(setting, work, programs, contender, problem, trial, phase):
  """Records of one run."""
  rate, knob = trial
  mu, knob = (knob, 1.0) if contender.proximal else (0.0, knob)
  label = f"{contender.name.replace(' ', '_')}-{rate:g}-{trial[1]:g}"
  stops = np.linspace(0, problem.horizon, work.looks + 1)[1:]
  return run_async.train(
    programs,
    jnp.array([rate, mu], jnp.float32),
    lambda: contender.schedule(problem, knob),
    problem.data,
    duration=problem.duration,
    key=jax.random.key(problem.seed),
    stops=stops.tolist(),
    workdir=setting.workdir / phase / f"{label}-seed{problem.seed}",
    config={
      **setting.config,
      "work": work._asdict(),
      "phase": phase,
      "trial": list(trial),
      "seed": problem.seed,
      "method": contender.name,
    },
    name=f"{phase} {label} seed {problem.seed}",
    save_seconds=20.0,  # a look may take less time than a checkpoint
    **setting.options,
  ).records


def figures(
  contender: Contender, problem: Problem, knob: float
) -> dict[str, float]:
  """What a schedule does with its clients, from the schedule alone."""
  scheduler = contender.schedule(problem, 1.0 if contender.proximal else knob)
  tasks, late, sizes = {}, [], []
  simulation = Simulation(scheduler, problem.duration, stops=[problem.horizon])
  version = 0
  for event in simulation:
    if isinstance(event, Task):
      tasks[event.id] = event
    elif isinstance(event, Merge):
      late += [version - tasks[i].version for i in event.tasks]
      sizes.append(len(event.tasks))
      version += 1
  busy = sum(min(t.arrives, problem.horizon) - t.sent for t in tasks.values())
  books = simulation.books
  return {
    "merges": len(sizes),
    "updates a merge": float(np.mean(sizes)) if sizes else np.nan,
    "versions late": float(np.mean(late)) if late else np.nan,
    "busy": busy / (problem.horizon * len(problem.weights)),
    "unused": books.waiting + books.dropped,
  }
