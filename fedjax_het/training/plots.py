"""Plots of a comparison: accuracy against rounds, bytes, time; over clients.

Each `draw_*` fills one matplotlib Axes, to be combined at will (lines carry
their arm's name as label); `save_plots` writes the PNGs of a report.  Colours
are Okabe and Ito's and one of Paul Tol's, which colour-blind readers can tell
apart; line styles tell lines apart in grey.  Lines are means over seeds, bands
their 95 % intervals.
"""

import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_het.training.arms import Arm
from fedjax_het.training.files import write_bytes_atomic
from fedjax_het.training.stats import mean_interval

COLOURS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#882255",
  "#000000",
)
STYLES = (
  "-",
  (0, (5, 1.5)),
  (0, (1.2, 1.2)),
  (0, (6, 1.5, 1.2, 1.5)),
  (0, (10, 2)),
  (0, (4, 1, 1, 1, 1, 1)),
  (0, (2.5, 2.5)),
)
_INK, _FAINT = "#333333", "#8A8A8A"
_STYLE: dict[Any, Any] = {
  "axes.edgecolor": _FAINT,
  "axes.labelcolor": _INK,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 11,
  "axes.titleweight": "bold",
  "font.size": 10,
  "grid.color": "#E3E3E3",
  "legend.frameon": False,
  "text.color": _INK,
  "xtick.color": _INK,
  "ytick.color": _INK,
}


def draw_accuracy_rounds(
  axes: Any,
  arms: Sequence[Arm],
  target: float | None = None,
  name_ends: bool = True,
) -> None:
  """Accuracy against rounds, each line named at its end unless told not to."""
  ends = []
  for k, arm in enumerate(arms):
    mean = _line(axes, k, arm.rounds, arm.accuracy, arm.name)
    ends.append((arm.rounds[-1], mean[-1], arm.name, _colour(k)))
  axes.set_xlabel("rounds")
  axes.set_title("Accuracy against rounds")
  axes.set_xlim(0, max((arm.rounds[-1] for arm in arms), default=1))
  _finish_accuracy(axes, "test accuracy", target)
  if name_ends:
    _name_ends(axes, ends)


def draw_accuracy_bytes(
  axes: Any, arms: Sequence[Arm], target: float | None = None
) -> None:
  """Accuracy against bytes sent up and down by all clients (log scale)."""
  from matplotlib.ticker import LogLocator

  for k, arm in enumerate(arms):
    if arm.sent_bytes is not None:
      sent = arm.sent_bytes.mean(0)
      mean = _line(axes, k, sent, arm.accuracy, arm.name)
      axes.plot(sent[-1], mean[-1], "o", color=_colour(k), markersize=5)
  axes.set_xscale("log")
  low, high = axes.get_xlim()
  if high < 100 * low:  # powers of ten alone would leave a tick or none
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
  axes.xaxis.set_minor_formatter(lambda value, _: "")
  axes.set_xlabel("bytes sent, up and down, all clients")
  axes.set_title("Accuracy against bytes sent")
  _finish_accuracy(axes, "test accuracy", target)


def draw_accuracy_time(
  axes: Any, arms: Sequence[Arm], target: float | None = None
) -> None:
  """Accuracy against the virtual time of the fleet."""
  timed = [(k, arm) for k, arm in enumerate(arms) if arm.seconds is not None]
  longest = max(arm.seconds.mean(0)[-1] for _, arm in timed)
  unit, size = _unit(longest)
  for k, arm in timed:
    spent = arm.seconds.mean(0) / size
    mean = _line(axes, k, spent, arm.accuracy, arm.name)
    axes.plot(spent[-1], mean[-1], "o", color=_colour(k), markersize=5)
  axes.set_xlabel(f"virtual time ({unit})")
  axes.set_title("Accuracy against virtual time")
  axes.set_xlim(left=0)
  _finish_accuracy(axes, "test accuracy", target)


def draw_client_accuracy(axes: Any, arms: Sequence[Arm]) -> None:
  """Accuracy of each client on its own test split, from worst to best."""
  for k, arm in enumerate(arms):
    if arm.client_accuracy is not None:
      ranked = np.sort(arm.client_accuracy, axis=1)
      share = (np.arange(ranked.shape[1]) + 0.5) / ranked.shape[1] * 100
      _line(axes, k, share, ranked, arm.name)
  axes.axvspan(0, 10, color="#F2F2F2", zorder=0)
  axes.annotate(
    "worst\ndecile",
    (5, 0.01),
    xycoords=axes.get_xaxis_transform(),
    ha="center",
    va="bottom",
    fontsize=8,
    color=_FAINT,
  )
  axes.set_xlabel("clients, from worst to best (%)")
  axes.set_title("Accuracy of each client on its own data")
  axes.set_xlim(0, 100)
  _finish_accuracy(axes, "client's test accuracy", None)


def save_plots(
  folder: str | os.PathLike,
  arms: Sequence[Arm],
  *,
  target: float | None = None,
) -> list[pathlib.Path]:
  """Writes the PNGs of a report, each whole or not at all.

  Args:
    folder: where to; must exist.
    arms: at least one; a plot that no arm has the data for is left out.
    target: an accuracy in [0, 1] to mark, or None.

  Returns:
    The paths: overview (all but clients), then rounds, bytes, time, clients.

  Raises:
    UserError: if the disk is full.
  """

  def rounds(axes):
    draw_accuracy_rounds(axes, arms, target)

  def rounds_unnamed(axes):
    draw_accuracy_rounds(axes, arms, target, name_ends=False)

  def sent(axes):
    draw_accuracy_bytes(axes, arms, target)

  def spent(axes):
    draw_accuracy_time(axes, arms, target)

  def clients(axes):
    draw_client_accuracy(axes, arms)

  timed = any(arm.seconds is not None for arm in arms)

  figures = {"accuracy_rounds": (rounds,)}
  if any(arm.sent_bytes is not None for arm in arms):
    figures = {
      "overview": (rounds_unnamed, sent, spent)[: 2 + timed],
      **figures,
      "accuracy_bytes": (sent,),
    }
  if timed:
    figures["accuracy_time"] = (spent,)
  if any(arm.client_accuracy is not None for arm in arms):
    figures["client_accuracy"] = (clients,)
  return [
    _save(pathlib.Path(folder) / f"{name}.png", panels, panels != (rounds,))
    for name, panels in figures.items()
  ]


def format_bytes(value: float) -> str:
  """Bytes in decimal units with three digits.

  Example:
    >>> format_bytes(999), format_bytes(1_250_000)
    ('999 B', '1.25 MB')
  """
  for unit in ("B", "kB", "MB", "GB", "TB"):
    if abs(value) < 999.5 or unit == "TB":
      return f"{value:.3g} {unit}"
    value /= 1000
  raise AssertionError("unreachable")


def format_seconds(value: float) -> str:
  """Seconds in the largest unit that gives a number of at least 1.

  Example:
    >>> format_seconds(90), format_seconds(0.25), format_seconds(7200)
    ('1.5 min', '0.25 s', '2 h')
  """
  unit, size = _unit(value)
  return f"{value / size:.3g} {unit}"


def _unit(seconds: float) -> tuple[str, int]:
  """The largest unit of time of which there is at least one, in seconds."""
  for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
    if seconds >= size:
      return unit, size
  return "s", 1


def format_joules(value: float) -> str:
  """Joules in J, kJ or MJ with three digits.

  Example:
    >>> format_joules(27.8), format_joules(1.2e6)
    ('27.8 J', '1.2 MJ')
  """
  for unit in ("J", "kJ"):
    if abs(value) < 999.5:
      return f"{value:.3g} {unit}"
    value /= 1000
  return f"{value:.3g} MJ"


def png(figure: Any) -> bytes:
  """A matplotlib figure as a PNG without version and date.

  Equal results give equal bytes; write them with `files.write_bytes_atomic`.
  """
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", metadata={"Software": None})
  return buffer.getvalue()


def _save(
  path: pathlib.Path, panels: Sequence[Callable], legend: bool
) -> pathlib.Path:
  # No pyplot: it keeps global state and may want a display.
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    figure = Figure((6.4 * len(panels), 4.2), dpi=150, layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for draw, axes in zip(panels, every, strict=True):
      draw(axes)
    if legend:
      handles, labels = every[-1].get_legend_handles_labels()
      figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 3 * len(panels)),
        handlelength=2.8,
        fontsize=9,
      )
    write_bytes_atomic(path, png(figure))
  return path


def _line(axes, k, x, values, name) -> np.ndarray:
  """Draws mean and interval of values [S, E] in percent; returns the mean."""
  per_point = [mean_interval(100 * column) for column in values.T]
  mean, low, high = np.array([p[:3] for p in per_point]).T
  style = STYLES[(k + k // len(COLOURS)) % len(STYLES)]  # no pair twice
  axes.plot(x, mean, color=_colour(k), linestyle=style, linewidth=2, label=name)
  if np.isfinite(high - low).any():
    axes.fill_between(x, low, high, color=_colour(k), alpha=0.16, linewidth=0)
  return mean


def _colour(k: int) -> str:
  return COLOURS[k % len(COLOURS)]


def _finish_accuracy(axes, label: str, target: float | None) -> None:
  axes.set_ylabel(f"{label} (%)")
  axes.grid(axis="y")
  axes.set_axisbelow(True)
  low, high = axes.get_ylim()
  axes.set_ylim(max(low, 0), min(high, 101))
  if target is not None:
    axes.axhline(100 * target, color=_FAINT, linewidth=1, linestyle=":")
    axes.annotate(
      f"target {100 * target:.3g} %",
      (0.01, 100 * target),
      xycoords=axes.get_yaxis_transform(),
      xytext=(0, 2),
      textcoords="offset points",
      fontsize=8,
      color=_FAINT,
    )


def _name_ends(axes, ends) -> None:
  """Writes each name right of its line's end, pushed apart where too close."""
  from matplotlib.colors import to_rgb

  if not ends:
    return
  low, high = axes.get_ylim()
  gap = (high - low) * 0.055
  order = sorted(range(len(ends)), key=lambda k: ends[k][1])
  place = [ends[k][1] for k in order]
  for _ in range(100):
    for i in range(len(place) - 1):
      if (short := gap - (place[i + 1] - place[i])) > 0:
        place[i] -= short / 2
        place[i + 1] += short / 2
  above = max(place[-1] - high, 0)
  for k, y in zip(order, place, strict=True):
    x, _, name, colour = ends[k]
    axes.annotate(
      name,
      (x, y - above),
      xytext=(6, 0),
      textcoords="offset points",
      color=[0.75 * part for part in to_rgb(colour)],  # thin: needs contrast
      fontsize=9,
      va="center",
      annotation_clip=False,
    )
