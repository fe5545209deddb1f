"""The report of `compare`: one table and one figure over all partitions."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_het.algorithms import REGISTRY
from fedjax_het.training.arms import Arm
from fedjax_het.training.files import (
  write_bytes_atomic,
  write_json_atomic,
  write_text_atomic,
)
from fedjax_het.training.plots import (
  COLOURS,
  format_bytes,
  format_joules,
  format_seconds,
)
from fedjax_het.training.report import markdown_table, run_facts
from fedjax_het.training.stats import (
  first_reach,
  mean_interval,
  paired_interval,
)

GLOBAL, OWN = "accuracy", "client_mean"
_TITLES = {
  GLOBAL: "Global model on held-out data (%)",
  OWN: "Clients' mean accuracy on their own test data (%)",
}
#: What the others are compared with, in pairs of seeds.
_REFERENCE = {GLOBAL: "fed_avg", OWN: "fine_tuned"}


class Column(NamedTuple):
  """One partition: its arms by name, and what tuning chose for each."""

  partition: str
  arms: Mapping[str, Arm]
  rates: Mapping[str, object]


def write(
  folder: pathlib.Path,
  title: str,
  columns: Sequence[Column],
  *,
  seconds: float,
  notes: Sequence[str],
  target: float,
) -> pathlib.Path:
  """Writes summary.md, compare.png and results.json.

  Args:
    folder: where to; exists.
    title: of the summary.
    columns: one a partition, all with the same arms.
    seconds: how long it took.
    notes: paragraphs below the tables.
    target: accuracy in [0, 1] for the time that each method takes to it.

  Returns:
    The path of summary.md.
  """
  facts = run_facts(seconds=seconds)
  parts = [f"# {title}", "\n".join(f"- {k}: {v}" for k, v in facts.items())]
  for figure in (GLOBAL, OWN):
    parts += [f"## {_TITLES[figure]}", _accuracy_table(columns, figure)]
  parts += [
    "Means over seeds with 95 % intervals (Student). In brackets, where the "
    "reference ran: the difference to it over the same seeds, bold where its "
    "interval leaves out 0. The reference is fed_avg in the first table and "
    "fine_tuned in the second.",
    "## Cost of a run",
    _cost_table(columns),
    f"## Virtual time to {100 * target:g} %",
    _time_table(columns, target),
    "Of the figure that each method is judged by, the global model's or the "
    "clients' mean: means over the seeds that reach it, at the evaluation at "
    "which they first do.",
    "## What tuning chose",
    _rates_table(columns),
    *notes,
    "![Accuracy of every method on every partition](compare.png)",
  ]
  write_bytes_atomic(folder / "compare.png", _figure(columns))
  write_json_atomic(folder / "results.json", {**facts, "runs": _runs(columns)})
  path = folder / "summary.md"
  write_text_atomic(path, "\n\n".join(parts) + "\n")
  return path


def values(arm: Arm, figure: str) -> np.ndarray | None:
  """f64[S]: the final figure of an arm, None if its method has no such one.

  Personal methods have no global model worth the name, and centralised training
  no clients.
  """
  if figure == GLOBAL:
    return arm.final if REGISTRY[arm.name].judged_by == GLOBAL else None
  return None if arm.name == "centralised" else arm.client_accuracy.mean(1)


def _accuracy_table(columns, figure) -> str:
  rows = []
  for name in columns[0].arms:
    cells = [_cell(column, name, figure) for column in columns]
    if any(cells):
      rows.append([name, *cells])
  return markdown_table(["", *(c.partition for c in columns)], rows)


def _cell(column, name, figure) -> str:
  mine = values(column.arms[name], figure)
  if mine is None:
    return ""
  mean, low, high, *_ = mean_interval(100 * mine)
  text = f"{mean:.1f}"
  if np.isfinite(high - low):
    text += f" ± {high - mean:.1f}"
  reference = column.arms.get(_REFERENCE[figure])
  if reference is None or reference.name == name:
    return text
  gap = paired_interval(100 * mine, 100 * values(reference, figure))
  sure = gap.low > 0 or gap.high < 0
  return text + (f" (**{gap.mean:+.1f}**)" if sure else f" ({gap.mean:+.1f})")


def _cost_table(columns) -> str:
  """Bytes and virtual time of a whole run, of the first partition."""
  column = columns[0]
  rows = []
  for name, arm in column.arms.items():
    if name == "centralised":
      continue
    time, energy = "-", "-"
    if arm.seconds is not None:
      time = format_seconds(arm.seconds[:, -1].mean())
      energy = format_joules(arm.joules[:, -1].mean())
    sent = [
      format_bytes(b[:, -1].mean()) for b in (arm.up_bytes, arm.down_bytes)
    ]
    rows.append([name, *sent, time, energy])
  head = ["", "sent up", "sent down", "virtual time", "energy"]
  return f"On {column.partition}.\n\n" + markdown_table(head, rows)


def _time_table(columns, target) -> str:
  rows = [
    [name, *(_time(column.arms[name], target) for column in columns)]
    for name in columns[0].arms
    if columns[0].arms[name].seconds is not None
  ]
  return markdown_table(["", *(c.partition for c in columns)], rows)


def _time(arm: Arm, target: float) -> str:
  spent = first_reach(arm.seconds, arm.accuracy, target)
  reached = np.isfinite(spent)
  if not reached.any():
    return "never"
  text = format_seconds(spent[reached].mean())
  if not reached.all():
    text += f" ({reached.sum()} of {reached.size})"
  return text


def _rates_table(columns) -> str:
  def text(rate):
    both = rate if isinstance(rate, tuple) else (rate,)
    return ", ".join(f"{value:g}" for value in both)

  rows = [
    [name, *(text(column.rates[name]) for column in columns)]
    for name in columns[0].arms
  ]
  return markdown_table(["", *(c.partition for c in columns)], rows)


def _runs(columns) -> list[dict]:
  return [
    {
      "partition": column.partition,
      "algorithm": name,
      "rate": column.rates[name],
      "accuracy": _plain(values(arm, GLOBAL)),
      "client_mean": _plain(values(arm, OWN)),
      "worst_decile": _plain(arm.worst_decile),
    }
    for column in columns
    for name, arm in column.arms.items()
  ]


def _plain(array: np.ndarray | None) -> list[float] | None:
  return None if array is None else [round(float(v), 6) for v in array]


def _figure(columns) -> bytes:
  """A panel for each partition and figure: means and intervals, best on top."""
  from matplotlib.figure import Figure

  shown = {
    figure: [
      name
      for name, arm in columns[0].arms.items()
      if values(arm, figure) is not None
    ]
    for figure in (GLOBAL, OWN)
  }
  heights = [max(len(shown[figure]), 2) for figure in (GLOBAL, OWN)]
  canvas = Figure(
    (3.4 * len(columns) + 1, 0.24 * sum(heights) + 2.2),
    dpi=130,
    layout="constrained",
  )
  axes = canvas.subplots(
    2, len(columns), squeeze=False, gridspec_kw={"height_ratios": heights}
  )
  for row, figure in enumerate((GLOBAL, OWN)):
    for k, column in enumerate(columns):
      _panel(axes[row][k], column, shown[figure], figure)
      axes[row][k].set_title(column.partition if row == 0 else "", fontsize=10)
    axes[row][0].set_xlabel(_TITLES[figure], fontsize=9, loc="left")
  buffer = io.BytesIO()
  canvas.savefig(buffer, format="png", metadata={"Software": None})
  return buffer.getvalue()


def _panel(axes, column, names, figure) -> None:
  stats = {
    name: mean_interval(100 * values(column.arms[name], figure))
    for name in names
  }
  order = sorted(names, key=lambda name: stats[name].mean)
  for place, name in enumerate(order):
    mean, low, high, *_ = stats[name]
    own = REGISTRY[name].judged_by == OWN
    colour = COLOURS[1] if own else COLOURS[0]
    if np.isfinite(high - low):
      low, high = np.clip((low, high), 0, 100)
      axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
    axes.plot(mean, place, "o", color=colour, markersize=4)
  axes.set_yticks(range(len(order)), order, fontsize=8)
  axes.tick_params(axis="x", labelsize=8)
  axes.grid(axis="x", color="#E3E3E3")
  axes.set_axisbelow(True)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
