"""Verdicts, tables and pictures of `pfed_gate`."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from fedjax_het.algorithms import gate_density, gate_judge, gating
from fedjax_het.training.arms import Arm
from fedjax_het.training.files import write_bytes_atomic
from fedjax_het.training.plots import COLOURS, png
from fedjax_het.training.report import markdown_table, plus_minus
from fedjax_het.training.stats import (
  Interval,
  Verdict,
  bootstrap_interval,
  judge,
)
from fedjax_het_experiments import _final_runs
from fedjax_het_experiments._comparison import Method
from fedjax_het_experiments._dealing import deal, of_seed
from fedjax_het_experiments._setting import Setting

DENSITIES = (1.0, 0.5, 0.3)
TOGETHER = (1, 128)


def gated(density: float, counted: bool = True) -> str:
  """The name of an arm."""
  return f"pFedGate s={density:g}" + ("" if counted else ", plain mean")


GATED = {gated(d): (d, True) for d in DENSITIES} | {
  gated(0.5, counted=False): (0.5, False)
}


class Gates(NamedTuple):
  """What the trained gates of an arm do.

  accuracy: test examples that share a network -> clients' f64[S, N].
  density: layer -> share that the clients' networks use, f64[S, N].
  used, sent: f64[S], means over rounds and clients: parameters used in a batch,
    and in at least one batch of a round.
  """

  accuracy: Mapping[int, np.ndarray]
  density: Mapping[str, np.ndarray]
  used: np.ndarray
  sent: np.ndarray


def verdicts(arms: Mapping[str, Arm]) -> list[Verdict]:
  """What the runs say about the clients' mean accuracy, in points."""

  def difference(a, b) -> Interval:
    return bootstrap_interval(100 * (arms[a].final - arms[b].final))

  def verdict(claim, criterion, gap, outcome):
    measured = f"{gap.mean:+.2f} points"
    return Verdict(claim, criterion, measured, gap, gap.seeds, outcome)

  dense, half = gated(1.0), gated(0.5)
  rows = []
  for density in DENSITIES[1:]:
    gap = difference(gated(density), dense)
    rows.append(
      verdict(
        f"s={density:g} is within a point of s=1",
        "difference >= -1",
        gap,
        judge(gap, at_least=-1.0),
      )
    )
  gap = difference(half, "FedAvg")
  rows.append(
    verdict(
      "s=0.5 is far above FedAvg (published +4.7)",
      "difference >= 2",
      gap,
      judge(gap, at_least=2.0),
    )
  )
  gap = difference(half, "FedAvg + fine-tuning")
  rows.append(
    verdict(
      "s=0.5 beats FedAvg + fine-tuning (published +4.1)",
      "difference > 0; declared not to reproduce",
      gap,
      "PASS" if gap.low > 0 else "FAIL",
    )
  )
  gap = difference(half, gated(0.5, counted=False))
  rows.append(
    verdict(
      "counting a block's holders beats the plain mean",
      "> 0 PASS; within 1 point of 0: NULL, as expected",
      gap,
      "PASS" if gap.low > 0 else judge(gap, null_within=1.0),
    )
  )
  return rows


def gates(
  setting: Setting, method: Method, seeds: Sequence[int], parts: int
) -> Gates:
  """Looks at the last states and the records of a gated method.

  Args:
    setting: of the comparison.
    method: one of `GATED`, run by `compare` on `seeds`.
    seeds: of the final runs.
    parts: B, blocks of a tensor.
  """
  density, _ = GATED[method.name]
  data, shape = deal(setting, seeds), setting.dataset.train_x.shape[1:]
  made = gating(setting.model, shape, density=density, parts=parts)
  states = _final_runs.last_states(setting, method, seeds)

  def of_each(figure):
    figure = jax.jit(figure)
    found = [figure(state, of_seed(data, s)) for s, state in enumerate(states)]
    return jax.tree.map(lambda *each: np.asarray(each, np.float64), *found)

  reported = [
    r for r in _final_runs.records(setting, method.name) if "sent" in r
  ]
  used, sent = (
    np.mean([r[key] for r in reported], axis=0) for key in ("density", "sent")
  )
  return Gates(
    {
      together: of_each(gate_judge(setting.model, made, together=together))
      for together in TOGETHER
    },
    of_each(gate_density(made)),
    used,
    sent,
  )


def accuracy_table(arms: Mapping[str, Arm], found: Mapping[str, Gates]) -> str:
  """The gated arms: accuracy by evaluation, density and what travels up."""
  rows = []
  for name, gate in found.items():
    clients = [arms[name].client_accuracy, *gate.accuracy.values()]
    figures = [100 * each.mean(axis=1) for each in clients]
    figures += [100 * gate.used, 100 * gate.sent]
    rows.append([name, *(plus_minus(figure) for figure in figures)])
  head = ["arm", "client level (%)"]
  head += [f"batch-{together} (%)" for together in TOGETHER]
  return markdown_table([*head, "used in a batch (%)", "sent up (%)"], rows)


def density_table(found: Mapping[str, Gates]) -> str:
  """Density of each layer at client level: mean, and range over clients."""
  rows = []
  for name, gate in found.items():
    cells = []
    for values in gate.density.values():
      low, high = 100 * values.min(1).mean(), 100 * values.max(1).mean()
      cells.append(f"{100 * values.mean():.1f} [{low:.1f}, {high:.1f}]")
    rows.append([name, *cells])
  layers = next(iter(found.values())).density
  return markdown_table(["arm", *(f"{layer} (%)" for layer in layers)], rows)


def save_density(path: pathlib.Path, found: Mapping[str, Gates]) -> None:
  """Bars: the mean density of each layer, one group a layer."""
  from matplotlib.figure import Figure

  figure = Figure((6.4, 4.2), dpi=150, layout="constrained")
  axes = figure.subplots()
  layers = list(next(iter(found.values())).density)
  width = 0.8 / len(found)
  for k, (name, gate) in enumerate(found.items()):
    axes.bar(
      np.arange(len(layers)) + (k - (len(found) - 1) / 2) * width,
      [100 * gate.density[layer].mean() for layer in layers],
      width,
      color=COLOURS[k % len(COLOURS)],
      label=name,
    )
  axes.set_xticks(range(len(layers)), layers)
  axes.set_ylabel("weights used (%)")
  axes.set_title("Density of each layer, mean over clients", loc="left")
  axes.grid(axis="y", color="#E3E3E3")
  axes.set_axisbelow(True)
  axes.spines[["right", "top"]].set_visible(False)
  figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
  write_bytes_atomic(path, png(figure))
