"""Compares methods: each tuned with equal effort, then run on fresh seeds.

A run is one (learning rate, seed).  All runs of a method are one program
(`core.sweep`): the rate is data, the seed brings its own initial weights and
its own partition.  Tuning looks only at the clients' own test splits, never at
the held-out data that the report shows.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core import chunking, evaluate, mesh, rounds, sweep
from fedjax_het.core.class_accuracy import make_class_accuracy
from fedjax_het.core.errors import UserError
from fedjax_het.core.rounds import Select, Selector
from fedjax_het.core.types import Algorithm, Array, Rows
from fedjax_het.selection import check_cohort_size, uniform
from fedjax_het.training.arms import Arm, arm_from_records
from fedjax_het.training.run import train
from fedjax_het_experiments._dealing import deal, pool
from fedjax_het_experiments._setting import Setting

TUNE_SEEDS = 1000  # tuning seeds start here: never the seeds of a report

Rate = float | tuple[float, ...]


class Method(NamedTuple):
  """name: as shown.

  build: hyper-parameters, f32[] or f32[K], may be traced -> the algorithm.
  rates: the hyper-parameters to try, numbers or K-tuples; every method of a
    comparison tries as many.
  pooled_steps: 0 for a federated method; else it runs on one client that holds
    everybody's data and does this many steps a round.
  judged_by: the figure of `core.evaluate` that its arm shows.
  select: (cohort_size, rounds) -> who trains, instead of the setting's.
  """

  name: str
  build: Callable[[Array], Algorithm]
  rates: tuple[Rate, ...]
  pooled_steps: int = 0
  judged_by: str = "accuracy"
  select: Callable[[int, int], Select | Selector] | None = None


class Run(NamedTuple):
  """What the checkpoints of a comparison hold, stacked over the runs."""

  rate: Array
  train: rounds.TrainState


def compare(
  setting: Setting,
  methods: Sequence[Method],
  *,
  seeds: Sequence[int],
  tune_seeds: int = 1,
) -> tuple[list[Arm], dict[str, Rate]]:
  """Tunes each method on seeds of its own and runs it on `seeds`.

  Args:
    setting: what they share.
    methods: with grids of one length.
    seeds: of the final runs.
    tune_seeds: runs per rate while tuning; 0 takes the middle of each grid.

  Returns:
    (arms, the rate chosen for each).

  Raises:
    UserError: grids of different lengths, a schedule that does not fit, and
      whatever `training.run.train` raises.
  """
  if len({len(method.rates) for method in methods}) > 1:
    raise UserError("tune with equal effort: give every method as many rates")
  if setting.rounds % setting.eval_every:
    raise UserError(
      f"--rounds={setting.rounds} is no multiple of "
      f"--eval_every={setting.eval_every}: change one of them"
    )
  check_cohort_size(setting.cohort_size, setting.num_clients)
  chosen = {}
  if tune_seeds:
    trial = [TUNE_SEEDS + i for i in range(tune_seeds)]
    data = deal(setting, trial)
    for method in methods:
      chosen[method.name] = _tune(setting, method, data, trial)
  else:
    for method in methods:
      chosen[method.name] = method.rates[len(method.rates) // 2]
  data, arms = deal(setting, seeds), []
  for method in methods:
    records = _run(
      setting, method, "final", data, [chosen[method.name]], list(seeds)
    )
    arms.append(
      arm_from_records(
        method.name, records, accuracy=f"eval/{method.judged_by}"
      )
    )
  return arms, chosen


def folder(setting: Setting, phase: str, name: str) -> pathlib.Path:
  """Where a method's runs are kept; phase is "tune" or "final"."""
  return setting.workdir / phase / name.replace(" ", "_").replace("/", "_")


def widest(setting: Setting, seeds: Sequence[int], tune_seeds: int) -> int:
  """The most rows that a client holds in any run of a comparison."""
  trial = [TUNE_SEEDS + i for i in range(tune_seeds)]
  return deal(setting, [*seeds, *trial]).train.index.shape[-1]


def _tune(setting, method, data, seeds) -> float:
  """The rate with the best mean accuracy on the clients' own splits."""
  records = _run(setting, method, "tune", data, method.rates, seeds)
  last = [r for r in records if "eval/client_mean" in r][-1]
  score = np.array(last["eval/client_mean"]).reshape(len(method.rates), -1)
  score = np.nan_to_num(score.mean(axis=1), nan=-1.0)
  return method.rates[int(score.argmax())]


def _run(setting, method, phase, data, rates, seeds):
  """All (rate, seed) runs of one method; records hold lists over the runs."""
  pairs = [(rate, seed) for rate in rates for seed in seeds]
  if method.pooled_steps:
    data = pool(data, method.pooled_steps)
  clients = data.train.count.shape[-1]
  cohort_size = min(setting.cohort_size, clients)
  if method.pooled_steps:
    select = uniform(cohort_size)
  else:
    select = (method.select or setting.select)(cohort_size, setting.rounds)

  def start(pair):
    rate, seed = pair
    key = jax.random.key(seed)
    state = rounds.init_state(method.build(rate), key, clients, select)
    return Run(rate, state)

  on_cpu = jax.default_backend() == "cpu"
  spread = mesh.client_mesh() if on_cpu and jax.device_count() > 1 else None

  def make(chunk):
    def block(run, data):
      algorithm = method.build(run.rate)
      one = rounds.make_block(
        rounds.make_round(
          algorithm,
          select,
          chunk=chunk,
          deadline=None if method.pooled_steps else setting.deadline,
        ),
        setting.eval_every,
        _evaluation(setting, algorithm, chunk),
      )
      state, history = one(run.train, data)
      return Run(run.rate, state), history

    return sweep.over_runs(
      block,
      mesh=spread,
      own_partition=True,
      vmap=not on_cpu,
    )

  each = jnp.tile(jnp.arange(len(seeds)), len(rates))
  first = (
    jnp.asarray([rate for rate, _ in pairs], jnp.float32),
    jnp.asarray([seed for _, seed in pairs], jnp.uint32),
  )
  states = jax.jit(lambda pairs: jax.lax.map(start, pairs))(first)
  data = data._replace(
    train=Rows(*(leaf[each] for leaf in data.train)),
    test=Rows(*(leaf[each] for leaf in data.test)),
  )
  if spread is not None:
    data = mesh.replicate(data, spread)  # not again for every block
  chunk = chunking.choose_chunk(make, (states, data), cohort_size)
  return train(
    make(chunk),
    states,
    data,
    rounds_per_block=setting.eval_every,
    num_blocks=setting.rounds // setting.eval_every,
    workdir=folder(setting, phase, method.name),
    config={
      **setting.config,
      "method": method.name,
      "rates": list(rates),
      "seeds": seeds,
    },
    clients_per_round=cohort_size * len(pairs),
    num_seeds=len(pairs),
    name=f"{phase} {method.name}",
    **setting.options,
  ).records


def _evaluation(setting, algorithm, chunk) -> rounds.Evaluate:
  usual = evaluate.make_evaluate(algorithm, setting.model, chunk=chunk)
  by_class = make_class_accuracy(
    algorithm, setting.model, setting.dataset.num_classes
  )
  return lambda state, data: {**usual(state, data), **by_class(state, data)}
