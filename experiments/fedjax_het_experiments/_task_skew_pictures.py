"""Pictures of `task_skew`: ratios with their intervals, and curves of loss."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_het.training.files import write_bytes_atomic
from fedjax_het.training.plots import COLOURS, STYLES, png
from fedjax_het.training.stats import Interval, mean_interval
from fedjax_het_experiments._task_skew_runs import (
  EMBEDDING,
  IID,
  LABEL,
  Outcome,
)


def save_ratios(
  path: pathlib.Path,
  rows: Sequence[tuple[str, np.ndarray, Interval]],
  margin: float,
) -> pathlib.Path:
  """Embedding over label, a line each: seeds, mean and interval.

  Args:
    path: of the PNG.
    rows: (name, the ratio of each seed, its mean and interval).
    margin: around 1, shaded: no difference.
  """

  def draw(figure):
    axes = figure.subplots()
    axes.axvspan(1 - margin, 1 + margin, color="#EEEEEE", zorder=0)
    axes.axvline(1, color="#8A8A8A", linewidth=1)
    for k, (_, each, ratio) in enumerate(reversed(rows)):
      axes.plot(each, np.full(len(each), k - 0.2), "|", color=COLOURS[1])
      if math.isfinite(ratio.high - ratio.low):
        span = [ratio.low, ratio.high]
        axes.plot(span, [k, k], color=COLOURS[0], linewidth=2)
      axes.plot([ratio.mean], [k], "o", color=COLOURS[0], markersize=7)
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("held-out loss, embedding skew / label skew")
    axes.set_title("Right of 1: embedding skew costs FedAvg more", loc="left")

  return _save(path, (7.0, 0.5 * len(rows) + 1.2), draw)


def save_losses(
  path: pathlib.Path, outcomes: Mapping[str, Outcome]
) -> pathlib.Path:
  """Held-out loss against rounds, a panel a task, in colours by kind."""
  from matplotlib.ticker import MaxNLocator

  colours = {IID: COLOURS[-1], LABEL: COLOURS[0], EMBEDDING: COLOURS[1]}

  def draw(figure):
    panels = figure.subplots(1, len(outcomes), squeeze=False)[0]
    for axes, (task, outcome) in zip(panels, outcomes.items(), strict=True):
      alphas = list(dict.fromkeys(a.partition(" ")[2] for a in outcome.curves))
      for arm, curve in outcome.curves.items():
        kind, _, alpha = arm.partition(" ")
        style = {"color": colours[kind], "label": arm}
        style["linestyle"] = STYLES[max(alphas.index(alpha) - 1, 0)]
        ends = [mean_interval(column) for column in curve.loss.T]
        mean, low, high = np.array([end[:3] for end in ends]).T
        axes.plot(curve.rounds, mean, **style)
        if np.isfinite(high - low).all():
          axes.fill_between(
            curve.rounds, low, high, color=colours[kind], alpha=0.1, linewidth=0
          )
      axes.set_title(task, loc="left")
      axes.set_xlabel("rounds")
      axes.xaxis.set_major_locator(MaxNLocator(integer=True))
      axes.grid(axis="y", color="#E3E3E3")
    panels[0].set_ylabel("held-out loss")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
      handles,
      names,
      loc="outside lower center",
      ncols=len(names),
      frameon=False,
      handlelength=2.8,
    )

  return _save(path, (4.2 * len(outcomes), 3.8), draw)


def _save(
  path: pathlib.Path, size: tuple[float, float], draw: Callable[[Any], None]
) -> pathlib.Path:
  from matplotlib.figure import Figure

  figure = Figure(size, dpi=150, layout="constrained")
  draw(figure)
  for axes in figure.axes:
    axes.spines[["right", "top"]].set_visible(False)
    axes.set_axisbelow(True)
  write_bytes_atomic(path, png(figure))
  return path
