"""Figures of `fed_spine`: simulated time by round, densities, three judges."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core import evaluate
from fedjax_het.core.types import Algorithm, Examples
from fedjax_het.training import metrics
from fedjax_het.training.arms import Arm
from fedjax_het.training.files import write_bytes_atomic
from fedjax_het.training.plots import COLOURS, STYLES, png
from fedjax_het.training.report import markdown_table, plus_minus
from fedjax_het_experiments import _final_runs
from fedjax_het_experiments._comparison import Method
from fedjax_het_experiments._dealing import deal
from fedjax_het_experiments._setting import Setting

JUDGES = ("own structures", "voted structure", "all units")


class Curves(NamedTuple):
  """By round, f64[S, T].

  longest: seconds of the slowest client;  spread: that over the median.
  sparsity: plain mean over clients;  rank: likewise.
  kept: group -> share of its units.
  """

  longest: np.ndarray
  spread: np.ndarray
  sparsity: np.ndarray
  rank: np.ndarray
  kept: Mapping[str, np.ndarray]


def summarise(cohort: Any) -> dict[str, np.ndarray]:
  """`summarise_cohort`, and the simulated time of a round.

  A round lasts as long as its slowest client; dropped uploads do not count.
  """
  came = np.asarray(cohort.ok)
  seconds = np.ma.masked_array(np.asarray(cohort.metrics["seconds"]), ~came)
  longest = seconds.max(-1)
  plain = {
    f"mean_{name}": np.ma.masked_array(
      np.asarray(cohort.metrics[name]), ~came
    ).mean(-1)
    for name in ("sparsity", "rank")
  }
  spread = longest / np.ma.median(seconds, -1)
  own = {"round_seconds": longest, "spread": spread, **plain}
  return metrics.summarise_cohort(cohort) | {
    name: np.ma.filled(value, np.nan) for name, value in own.items()
  }


def curves(setting: Setting, name: str) -> Curves:
  """What a method's final runs recorded, by round."""
  each = [
    record
    for record in _final_runs.records(setting, name)
    if "round_seconds" in record
  ]

  def curve(key):
    return np.array([record[key] for record in each], np.float64).T

  kept = [key for key in each[0] if key.startswith("kept/")]
  return Curves(
    curve("round_seconds"),
    curve("spread"),
    curve("mean_sparsity"),
    curve("mean_rank"),
    {key.removeprefix("kept/"): curve(key) for key in kept},
  )


def timed(arm: Arm, found: Curves) -> Arm:
  """The arm with its simulated seconds."""
  spent = np.cumsum(found.longest, axis=1)
  return arm._replace(seconds=spent[:, np.asarray(arm.rounds) - 1])


def judged(
  setting: Setting,
  method: Method,
  whole: Algorithm,
  seeds: Sequence[int],
  size: int,
) -> dict[str, np.ndarray]:
  """Accuracy on held-out data at the end, by `JUDGES`, f64[S] each.

  Args:
    setting: of the comparison.
    method: run by `compare` on `seeds`.
    whole: the method's algorithm, judged on all units.
    seeds: of the final runs.
    size: how many held-out examples clients' own structures are judged on.
  """
  algorithm = method.build(jnp.float32(0))
  heldout = deal(setting, seeds).heldout
  some = Examples(heldout.x[:size], heldout.y[:size])

  @jax.jit
  def all_three(state, heldout, some):
    def one(of):
      params = algorithm.predict(state.server, *of)
      return evaluate.heldout(setting.model, params, some)[0]

    clients = jnp.arange(setting.num_clients)
    own = jax.lax.map(one, (state.clients, clients))
    both = [
      evaluate.heldout(setting.model, a.global_params(state.server), heldout)[0]
      for a in (algorithm, whole)
    ]
    return [jnp.mean(own), *both]

  found = [
    all_three(state, heldout, some)
    for state in _final_runs.last_states(setting, method, seeds)
  ]
  columns = np.asarray(found, np.float64).T
  return dict(zip(JUDGES, columns, strict=True))


def judge_table(by_judge: Mapping[str, Mapping[str, np.ndarray]]) -> str:
  """Accuracy of each arm in %, by judge: mean ± standard deviation."""
  rows = [
    [name, *(plus_minus(100 * found[judge]) for judge in JUDGES)]
    for name, found in by_judge.items()
  ]
  return markdown_table(["arm", *(f"{judge} (%)" for judge in JUDGES)], rows)


def cost_table(found: Mapping[str, Curves]) -> str:
  """The end of each arm: time, spread, sparsity, rank, density by layer."""
  rows = []
  for name, curve in found.items():
    third = max(curve.spread.shape[1] // 3, 1)
    rows.append(
      [
        name,
        plus_minus(curve.longest.sum(1)),
        plus_minus(curve.spread[:, :third].mean(1)),
        plus_minus(curve.spread[:, -third:].mean(1)),
        plus_minus(100 * curve.sparsity[:, -1]),
        f"{curve.rank[:, -third:].mean():.1f}",
        ", ".join(
          f"{100 * kept[:, -1].mean():.0f}" for kept in curve.kept.values()
        ),
      ]
    )
  groups = ", ".join(next(iter(found.values())).kept)
  head = ["arm", "seconds in all", "max/median, first third", "last third"]
  head += ["removed at the end (%)", "mean rank", f"kept (%): {groups}"]
  return markdown_table(head, rows)


def save_pictures(
  where: pathlib.Path, found: Mapping[str, Curves], shown: str
) -> list[pathlib.Path]:
  """Max/median over rounds, and what is kept of each layer over rounds.

  Args:
    where: folder.
    found: of each arm.
    shown: the arm whose densities are drawn.
  """

  def spread(axes):
    for k, (name, curve) in enumerate(found.items()):
      _draw(axes, k, curve.spread, name)
    axes.set_title("Slowest over median client (simulated)")
    axes.set_ylabel("max / median time of a round")
    axes.legend(frameon=False, fontsize=8)

  def density(axes):
    for k, (group, kept) in enumerate(found[shown].kept.items()):
      _draw(axes, k, 100 * kept, group)
    axes.set_title(f"What is kept of each layer, {shown}")
    axes.set_ylabel("units kept (%)")
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=8)

  return [
    _save(where / "spread.png", spread),
    _save(where / "density.png", density),
  ]


def _draw(axes, k, values, name) -> None:
  """The mean over seeds by round, and their range."""
  x = np.arange(1, values.shape[1] + 1)
  colour = COLOURS[k % len(COLOURS)]
  style = STYLES[k % len(STYLES)]
  axes.plot(x, values.mean(0), color=colour, linestyle=style, label=name)
  axes.fill_between(
    x, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0
  )
  axes.set_xlabel("rounds")
  axes.set_xlim(1, values.shape[1])


def _save(path, draw) -> pathlib.Path:
  from matplotlib.figure import Figure

  figure = Figure((6.4, 4.2), dpi=150, layout="constrained")
  axes = figure.subplots()
  draw(axes)
  axes.spines[["right", "top"]].set_visible(False)
  axes.grid(axis="y", color="#E3E3E3")
  axes.set_axisbelow(True)
  write_bytes_atomic(path, png(figure))
  return path
