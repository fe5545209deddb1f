"""Verdicts, tables and notes of `fedcompass`."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.training.arms import Arm
from fedjax_het.training.report import markdown_table
from fedjax_het.training.stats import (
  Interval,
  Verdict,
  first_reach,
  judge,
  mean_interval,
  paired_interval,
)
from fedjax_het_experiments._async_runs import (
  Contender,
  Found,
  Problem,
  figures,
)

FEDAVG, COMPASS = "FedAvg", "FedCompass"
ASYNCHRONOUS = ("FedAsync", "FedBuff", "FedAT")


def default_target(arms: Sequence[Arm]) -> float:
  """95 % of FedAvg's last accuracy, mean over seeds."""
  (rounds,) = (arm for arm in arms if arm.name == FEDAVG)
  return 0.95 * float(rounds.final.mean())


def ratios(arms: Sequence[Arm], target: float) -> dict[str, np.ndarray]:
  """Time to the target over FedAvg's, f64[S] a method.

  Who never reaches it counts with the whole time.
  """
  ends = {arm.name: arm.seconds[:, -1] for arm in arms}
  spent = {
    arm.name: np.minimum(
      first_reach(arm.seconds, arm.accuracy, target), ends[arm.name]
    )
    for arm in arms
  }
  return {name: each / spent[FEDAVG] for name, each in spent.items()}


def geometric(ratio: np.ndarray) -> Interval:
  """Geometric mean and its Student interval."""
  log = mean_interval(np.log(ratio))
  return log._replace(
    mean=float(np.exp(log.mean)),
    low=float(np.exp(log.low)),
    high=float(np.exp(log.high)),
  )


def verdicts(fleet: str, arms: Sequence[Arm], target: float) -> list[Verdict]:
  """What one fleet says."""
  by_name = {arm.name: arm for arm in arms}
  ratio = ratios(arms, target)[COMPASS]
  interval = geometric(ratio)
  log = mean_interval(np.log(ratio))
  percent = f"{100 * target:.3g} %"
  if fleet.startswith("constant"):
    criterion = "ratio in [1 / 1.25, 1.25]: NULL, as expected"
    outcome = judge(log, null_within=float(np.log(1.25)))
  else:
    criterion = "ratio <= 0.7"
    outcome = judge(log, at_most=float(np.log(0.7)))
  rows = [
    Verdict(
      f"time to {percent} against FedAvg, {fleet} speeds",
      criterion,
      f"{interval.mean:.2f} x",
      interval,
      interval.seeds,
      outcome,
    )
  ]
  best = max(ASYNCHRONOUS, key=lambda name: by_name[name].final.mean())
  gap = paired_interval(100 * by_name[COMPASS].final, 100 * by_name[best].final)
  rows.append(
    Verdict(
      f"final accuracy not below the best asynchronous method, {best}",
      "difference >= -1 point",
      f"{gap.mean:+.2f} points",
      gap,
      gap.seeds,
      judge(gap, at_least=-1.0),
    )
  )
  return rows


def table(
  arms: Sequence[Arm], target: float, schedules: dict[str, dict[str, float]]
) -> str:
  """Time to target relative to FedAvg, beside what the schedules do."""
  rows, relative = [], ratios(arms, target)
  for arm in arms:
    ratio = geometric(relative[arm.name])
    reached = np.isfinite(first_reach(arm.seconds, arm.accuracy, target))
    of = schedules[arm.name]
    rows.append(
      [
        arm.name,
        f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        f"{reached.sum()} of {len(reached)}",
        f"{of['merges']:.0f}",
        f"{of['updates a merge']:.1f}",
        f"{of['versions late']:.1f}",
        f"{100 * of['busy']:.0f}",
        f"{of['unused']:.0f}",
      ]
    )
  return markdown_table(
    [
      "method",
      "time to target / FedAvg's",
      "seeds that reached it",
      "merges",
      "updates a merge",
      "versions late",
      "clients at work (%)",
      "not merged",
    ],
    rows,
  )


def spent(
  chosen: Sequence[Contender], trials: dict, final: Sequence[Problem]
) -> dict[str, dict[str, float]]:
  """What each method's schedule does, means over the problems' seeds.

  Args:
    chosen: the methods.
    trials: name -> (client rate, knob) that tuning chose.
    final: one problem a seed.
  """
  found = {}
  for contender in chosen:
    each = [figures(contender, p, trials[contender.name][1]) for p in final]
    found[contender.name] = {
      key: float(np.mean([of[key] for of in each])) for key in each[0]
    }
  return found


def notes(
  found: Found,
  schedules: dict[str, dict[str, float]],
  *,
  rounds: int,
  tune_seeds: int,
  target: float,
) -> list[str]:
  """The paragraphs below the table of arms.

  Args:
    found: of `compare`.
    schedules: of `spent`.
    rounds: of FedAvg that every run lasts.
    tune_seeds: how many seeds tuning looked at.
    target: accuracy in [0, 1] whose time is compared.
  """
  return [
    f"Every run lasts {rounds} rounds of FedAvg with everybody in "
    "virtual time; `rounds` in the plots are those. Time is simulated: local "
    "steps, bytes and each device's speed.",
    f"## Time to {100 * target:.3g} %\n\n"
    + table(found.arms, target, schedules),
    "Geometric means over seeds with 95 % intervals; who never reaches the "
    "target counts with the whole time. `versions late` is the mean staleness "
    "of merged updates, `not merged` counts updates that were waiting at the "
    "end: none is ever lost.",
    "Trials (client rate, own knob), the best of as many for every method by "
    "the mean over time of the clients' accuracy on their own test splits, on "
    f"{tune_seeds} tuning seeds (0: the middle knob): "
    + "; ".join(
      f"{name}: {rate:g}, {knob:g}"
      for name, (rate, knob) in found.trials.items()
    )
    + ". Knobs: the server's rate (FedAvg, FedNova, FedAsync, FedBuff, "
    "FedCompass), momentum (FedAvgM), mu (FedProx), tiers (FedAT).",
    "![Who trained when.](gantt.png)",
  ]
