"""FedCompass: is giving each client its number of steps faster than waiting?

Claims of arXiv:2309.14675: the time to a target accuracy falls against FedAvg
when speeds differ, and accuracy is at least that of asynchronous methods.  Here
FedAvg, FedAvgM, FedProx, FedNova, FedAsync, FedBuff, FedAT and FedCompass run
for the same virtual time on fleets of equal, normal and exponential speeds.
Every arm has six trials (client rate x its own knob: the server's rate,
momentum, mu, tiers) on tuning seeds, then fresh seeds in pairs.

Declared beforehand: time to 95 % of FedAvg's last accuracy <= 0.7 x FedAvg's
under exponential speeds, about 1 x (a null) under equal ones.  FedNova gives
each client the steps that it does in the time of the median one, within
[min_steps, max_steps].

Command:
  fedjax-het fedcompass --flagfile=fedcompass.fashion_mnist
Minutes: see experiments/README.md (measured).
Expected (measured): about 0.7 x FedAvg's time under normal and exponential
speeds, too uncertain at five seeds for a PASS; FedNova does as well or better.
"""

import pathlib
import time

import numpy as np
from absl import flags

from fedjax_het import models
from fedjax_het.core.errors import UserError
from fedjax_het.data import sources
from fedjax_het.devices import staleness
from fedjax_het.devices.schedules import (
  FedAsync,
  FedAT,
  FedBuff,
  FedCompass,
  Synchronous,
)
from fedjax_het.training.report import write_report
from fedjax_het_experiments import _compass_report as report
from fedjax_het_experiments import _flags
from fedjax_het_experiments._async_runs import (
  Contender,
  Work,
  compare,
  compiled,
  deal,
  problems,
)
from fedjax_het_experiments._comparison import TUNE_SEEDS
from fedjax_het_experiments._compass_report import COMPASS, FEDAVG
from fedjax_het_experiments._gantt import save_gantt
from fedjax_het_experiments._setting import Setting

_FLEETS = flags.DEFINE_list(
  "fedcompass_fleets",
  ["constant", "normal", "exponential"],
  "Spreads of the devices' speeds, one report each.",
)
_TARGET = flags.DEFINE_float(
  "fedcompass_target",
  0.0,
  "Accuracy whose time is compared; 0: 95 % of what FedAvg has at the end of"
  " the fleet's runs, mean over seeds.",
  lower_bound=0.0,
  upper_bound=1.0,
)
_MIN_STEPS = flags.DEFINE_integer(
  "fedcompass_min_steps", 10, "Q_min, fewest local steps.", lower_bound=1
)
_MAX_STEPS = flags.DEFINE_integer(
  "fedcompass_max_steps",
  50,
  "Q_max, most local steps; the others' number of steps.",
  lower_bound=1,
)
_SLACK = flags.DEFINE_float(
  "fedcompass_slack", 1.2, "lambda of the latest times.", lower_bound=1.0
)
_STALENESS = flags.DEFINE_string(
  "fedcompass_staleness",
  "polynomial:0.5",
  "s(tau) of FedAsync, FedBuff and FedCompass: constant, polynomial:POWER"
  " (-0.5 is FedCompass's released code), hinge:SLOPE/FREE.",
)
_RATES = flags.DEFINE_multi_float(
  "fedcompass_rate", [0.03, 0.1], "Learning rates of the clients to try."
)


def contenders() -> list[Contender]:
  """All methods, three knobs each."""
  low, high = _MIN_STEPS.value, _MAX_STEPS.value
  late = staleness.parse(_STALENESS.value)

  def rounds(problem, **options):
    return Synchronous(
      problem.weights, steps=high, seed=problem.seed, **options
    )

  def nova(problem, knob):
    # as many steps as fit into the median client's time
    each = np.median(problem.speeds) / problem.speeds * high
    steps = np.clip(np.floor(each), low, high).astype(int)
    return Synchronous(problem.weights, steps=steps, rate=knob, normalise=True)

  def asynchronous(factory, **options):
    return lambda problem, knob: factory(
      problem.weights,
      steps=high,
      rate=knob,
      staleness=late,
      seed=problem.seed,
      **options,
    )

  def tiers(problem, knob):
    count = min(int(knob), len(problem.weights))
    return FedAT(problem.weights, problem.speeds, tiers=count, steps=high)

  def compass(problem, knob):
    return FedCompass(
      problem.weights,
      min_steps=low,
      max_steps=high,
      slack=_SLACK.value,
      rate=knob,
      staleness=late,
    )

  return [
    Contender(FEDAVG, lambda p, knob: rounds(p, rate=knob), (0.7, 1.0, 1.4)),
    Contender(
      "FedAvgM", lambda p, knob: rounds(p, momentum=knob), (0.3, 0.6, 0.9)
    ),
    Contender("FedProx", lambda p, _: rounds(p), (0.01, 0.1, 1.0), True),
    Contender("FedNova", nova, (0.7, 1.0, 1.4)),
    Contender("FedAsync", asynchronous(FedAsync), (0.3, 0.6, 0.9)),
    Contender("FedBuff", asynchronous(FedBuff, buffer_size=3), (0.5, 1.0, 2.0)),
    Contender("FedAT", tiers, (2, 3, 5)),
    Contender(COMPASS, compass, (0.9, 2.7, 8.0)),
  ]


def main(argv: list[str]) -> None:
  del argv
  if not _FLEETS.value:
    raise UserError("--fedcompass_fleets is empty: give at least one")
  dataset = sources.load(_flags.DATASET.value, _flags.DATA_DIR.value)
  model = models.build(
    _flags.MODEL.value, dataset.train_x.shape[1:], dataset.num_classes
  )
  setting = _setting(dataset, model)
  seeds, tune = _flags.SEEDS.value, _flags.TUNE_SEEDS.value
  trial = [TUNE_SEEDS + i for i in range(tune)]
  dealt = deal(setting, [*seeds, *trial])
  work = Work(
    _MAX_STEPS.value,
    _flags.BATCH_SIZE.value,
    _flags.ROUNDS.value,
    _flags.ROUNDS.value * 2,
    tuple(_RATES.value),
  )
  programs, methods = compiled(setting, work), contenders()
  for fleet in _FLEETS.value:
    started = time.monotonic()
    found = compare(
      setting,
      dealt,
      methods,
      fleet,
      work,
      programs,
      seeds=seeds,
      tune_seeds=tune,
    )
    final = problems(setting, dealt, fleet, work, seeds)
    folder = setting.workdir / fleet.partition(",")[0].replace(":", "_")
    by_name = {method.name: method for method in methods}
    drawn = [
      (by_name[name], found.trials[name][1])
      for name in (FEDAVG, "FedAT", COMPASS)
    ]
    save_gantt(folder / "gantt.png", final[0], drawn)
    target = _TARGET.value or report.default_target(found.arms)
    write_report(
      folder,
      f"FedCompass on {dataset.name}, {setting.partition}, "
      f"{setting.num_clients} clients, {fleet} speeds",
      found.arms,
      report.verdicts(fleet, found.arms, target),
      seconds=time.monotonic() - started,
      notes=report.notes(
        found,
        report.spent(methods, found.trials, final),
        rounds=work.rounds,
        tune_seeds=tune,
        target=target,
      ),
      target=target,
    )


def _setting(dataset, model) -> Setting:
  """What all methods share; everybody trains all the time."""
  decisive = (
    _flags.DATASET,
    _flags.PARTITION,
    _flags.NUM_CLIENTS,
    _flags.MODEL,
    _MIN_STEPS,
    _SLACK,
    _STALENESS,
  )
  return Setting(
    dataset=dataset,
    partition=_flags.PARTITION.value,
    num_clients=_flags.NUM_CLIENTS.value,
    model=model,
    cohort_size=_flags.NUM_CLIENTS.value,
    rounds=_flags.ROUNDS.value,
    eval_every=1,
    workdir=pathlib.Path(_flags.WORKDIR.value),
    config={flag.name: flag.value for flag in decisive},
    options={
      "resume": _flags.RESUME.value,
      "overwrite": _flags.OVERWRITE.value,
      "tensorboard": _flags.TENSORBOARD.value,
    },
  )


if __name__ == "__main__":
  _flags.run(
    main,
    unused=(
      "cohort_size",
      "eval_every",
      "selection",
      "deadline",
      "availability",
      "fleet",
      "local_epochs",
      "feature_skew",
      "concept_shift",
    ),
    partition="dual_dirichlet:0.5",
    num_clients=10,
    rounds=20,
    batch_size=32,
  )
