"""The report of an experiment: verdicts in the terminal, summary.md, plots."""

import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedjax_het.training.arms import Arm
from fedjax_het.training.files import storage_errors, write_text_atomic
from fedjax_het.training.plots import (
  format_bytes,
  format_joules,
  format_seconds,
  save_plots,
)
from fedjax_het.training.progress import format_duration
from fedjax_het.training.stats import (
  Interval,
  Verdict,
  first_reach,
  mean_interval,
)
from fedjax_het.version import __version__

_COLOUR = {"PASS": "bold green", "FAIL": "bold red", "NULL": "bold yellow"}
_HEADINGS = ("claim", "criterion", "measured", "interval", "seeds", "outcome")
_CAPTIONS = {
  "overview": "Accuracy against rounds, bytes sent and virtual time.",
  "accuracy_rounds": "Test accuracy of the global model against rounds.",
  "accuracy_bytes": "Test accuracy against bytes sent, up and down.",
  "accuracy_time": "Test accuracy against virtual time of the fleet.",
  "client_accuracy": "Accuracy of each client on its own test split.",
}


def write_report(
  folder: str | os.PathLike,
  title: str,
  arms: Sequence[Arm],
  verdicts: Sequence[Verdict],
  *,
  command: str | None = None,
  seconds: float | None = None,
  notes: Sequence[str] = (),
  target: float | None = None,
  console: Console | None = None,
) -> pathlib.Path:
  """Writes summary.md and its plots, and prints the verdicts.

  Args:
    folder: where to; made if it is absent.
    title: of the summary, e.g. the claim's short name.
    arms: what was compared.
    verdicts: what it says about the claims.
    command: how to run it again; by default, how this process was started.
    seconds: how long it took, if known.
    notes: paragraphs below the tables, e.g. how the arms were tuned.
    target: an accuracy in [0, 1] to mark in the plots.
    console: where to print; stdout by default.

  Returns:
    The path of summary.md.

  Raises:
    UserError: if the disk is full; no half-written file is left.
  """
  folder = pathlib.Path(folder)
  with storage_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
  plots = save_plots(folder, arms, target=target)
  path = folder / "summary.md"
  facts = run_facts(command, seconds)
  text = summary_markdown(title, arms, verdicts, facts, plots, notes, target)
  write_text_atomic(path, text)
  console = console or Console()
  if verdicts:
    console.print(verdict_table(verdicts, title))
  console.print(f"report: {path}", markup=False, soft_wrap=True)
  return path


def run_facts(
  command: str | None = None, seconds: float | None = None
) -> dict[str, str]:
  """What a reader must know to repeat a run: command, versions, device."""
  import jax

  if command is None:
    command = shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
  devices = jax.devices()
  facts = {
    "command": f"`{command}`",
    "versions": (
      f"fedjax-het {__version__}, jax {jax.__version__}, "
      f"numpy {np.__version__}, Python {platform.python_version()}"
    ),
    "device": f"{len(devices)} x {devices[0].device_kind} "
    f"({devices[0].platform}), {os.cpu_count()} CPU cores",
  }
  if seconds is not None:
    facts["duration"] = format_duration(seconds)
  return facts


def summary_markdown(
  title: str,
  arms: Sequence[Arm],
  verdicts: Sequence[Verdict],
  facts: Mapping[str, str],
  plots: Sequence[str | os.PathLike] = (),
  notes: Sequence[str] = (),
  target: float | None = None,
) -> str:
  """The text of summary.md: facts, verdicts, arms, costs, plots, notes."""
  parts = [f"# {title}", "\n".join(f"- {k}: {v}" for k, v in facts.items())]
  if verdicts:
    rows = [_verdict_cells(verdict) for verdict in verdicts]
    parts += ["## Verdicts", markdown_table(_HEADINGS, rows)]
  if arms:
    parts += ["## Arms", markdown_table(*arm_rows(arms))]
    parts.append(
      "Means over seeds with 95 % intervals (Student), also the bands in the "
      "plots; bytes are those of all clients over the whole run."
    )
    if target is not None:
      parts.append(f"## To {100 * target:.3g} % accuracy")
      parts.append(markdown_table(*target_rows(arms, target)))
      parts.append(
        "Means over the seeds that reach it, at the evaluation at which they "
        "first do; virtual time and energy are those of the simulated fleet."
      )
  parts += notes
  for plot in map(pathlib.Path, plots):
    caption = _CAPTIONS.get(plot.stem, plot.stem)
    parts.append(f"![{caption}]({plot.name})")
  return "\n\n".join(parts) + "\n"


def verdict_table(verdicts: Sequence[Verdict], title: str = "") -> Table:
  """The verdicts as a rich table, to print on a console."""
  table = Table(title=title or None, title_justify="left", show_lines=True)
  for heading in _HEADINGS:
    side = "right" if heading == "seeds" else "left"
    whole = heading in ("outcome", "seeds")
    table.add_column(heading, justify=side, no_wrap=whole)
  for verdict in verdicts:
    cells = [Text(cell) for cell in _verdict_cells(verdict)]
    cells[-1].stylize(_COLOUR[verdict.outcome])
    table.add_row(*cells)
  return table


def arm_rows(arms: Sequence[Arm]) -> tuple[tuple[str, ...], list[list[str]]]:
  """Headings and rows of the table that compares arms at their ends."""
  headings = (
    "arm",
    "rounds",
    "seeds",
    "accuracy (%)",
    "clients' mean (%)",
    "worst decile (%)",
    "sent up",
    "sent down",
  )
  rows = []
  for arm in arms:
    each = arm.client_accuracy
    rows.append(
      [
        arm.name,
        str(arm.rounds[-1]),
        str(len(arm.final)),
        _percent(arm.final),
        _percent(None if each is None else each.mean(1)),
        _percent(arm.worst_decile),
        _total(arm.up_bytes),
        _total(arm.down_bytes),
      ]
    )
  return headings, rows


def target_rows(
  arms: Sequence[Arm], target: float
) -> tuple[tuple[str, ...], list[list[str]]]:
  """Headings and rows of what each arm takes to the target accuracy."""
  headings = ("arm", "seeds", "rounds", "sent", "virtual time", "energy")
  rows = []
  for arm in arms:
    reached = np.isfinite(first_reach(arm.rounds, arm.accuracy, target))
    costs = (
      (arm.rounds, lambda value: f"{value:.4g}"),
      (arm.sent_bytes, format_bytes),
      (arm.seconds, format_seconds),
      (arm.joules, format_joules),
    )
    cells = [arm.name, f"{reached.sum()} of {reached.size}"]
    for cost, form in costs:
      if cost is None or not reached.any():
        cells.append("-")
        continue
      spent = first_reach(cost, arm.accuracy, target)
      cells.append(form(float(spent[reached].mean())))
    rows.append(cells)
  return headings, rows


def _verdict_cells(verdict: Verdict) -> list[str]:
  measured = verdict.measured
  return [
    verdict.claim,
    verdict.criterion,
    measured if isinstance(measured, str) else f"{measured:.4g}",
    _range(verdict.interval),
    str(verdict.seeds),
    verdict.outcome,
  ]


def _range(interval: Interval | None) -> str:
  if interval is None or not np.isfinite(interval.high - interval.low):
    return "-"
  return f"[{interval.low:.4g}, {interval.high:.4g}]"


def _percent(values: np.ndarray | None) -> str:
  if values is None:
    return "-"
  mean, low, high, *_ = mean_interval(100 * values)
  if not np.isfinite(high - low):
    return f"{mean:.1f}"
  return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _total(values: np.ndarray | None) -> str:
  return "-" if values is None else format_bytes(values[:, -1].mean())


def plus_minus(values: np.ndarray) -> str:
  """Mean ± standard deviation over seeds, f64[S]; one seed has no deviation."""
  spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
  return f"{values.mean():.2f}{spread}"


def markdown_table(
  headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
  """A table in Markdown; bars and line breaks in cells are escaped."""

  def line(cells):
    # A bar or a line break in a cell would end it.
    safe = [cell.replace("|", "\\|").replace("\n", " ") for cell in cells]
    return "| " + " | ".join(safe) + " |"

  rule = "|" + "---|" * len(headings)
  return "\n".join([line(headings), rule, *map(line, rows)])
