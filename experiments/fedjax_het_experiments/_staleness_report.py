"""What `staleness` reports: the affected class, errors over time, verdicts."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_het.training.arms import Arm
from fedjax_het.training.files import write_bytes_atomic
from fedjax_het.training.metrics import Record, read_jsonl
from fedjax_het.training.plots import COLOURS, draw_accuracy_rounds, png
from fedjax_het.training.report import markdown_table, write_report
from fedjax_het.training.run import METRICS
from fedjax_het.training.stats import (
  Interval,
  Verdict,
  judge,
  mean_interval,
  paired_interval,
)

ORACLE, DIRECT, WEIGHTED = "no staleness", "late as it is", "weighted"
ASYNC, FIRST_ORDER, DROPPED = "FedAsync", "first order", "dropped"
INVERTED, UNSWITCHED = "inverted", "inverted, no switch"


class Judged(NamedTuple):
  """Estimates whose truth came, of all J such rounds and S seeds.

  rounds: i64[J], when the estimate was used (the truth came tau later).
  e1, e2: f64[S, J], relative L1 errors of the estimate and the late update.
  cosine1, cosine2: f64[S, J], their cosines with the truth.
  """

  rounds: np.ndarray
  e1: np.ndarray
  e2: np.ndarray
  cosine1: np.ndarray
  cosine2: np.ndarray


def affected_curve(records: Sequence[Record], affected: int) -> np.ndarray:
  """f64[S, E]: accuracy on one class at each evaluation."""
  name = "eval/class_accuracy"
  values = [record[name] for record in records if name in record]
  return np.asarray(values, np.float64)[..., affected].T


def judged(records: Sequence[Record], delay: int) -> Judged:
  """Reads the errors out of the records of an arm with inversions.

  The figures that go with round r (from 1) are the server's before it: the
  truths that came in the round with index r - 2 (from 0) for estimates of
  tau rounds before.
  """
  rounds = [r for r in records if "e1" in r]
  when = np.array([r["round"] - 2 - delay for r in rounds])
  # The first estimate is of round tau; a round without anybody says NaN.
  there = when >= delay
  curves = [
    np.asarray([r[name] for r in rounds], np.float64).T[:, there]
    for name in ("e1", "e2", "cosine1", "cosine2")
  ]
  return Judged(when[there], *curves)


def area(curve: np.ndarray) -> np.ndarray:
  """f64[S], %: the mean over evenly spaced evaluations."""
  return 100 * curve.mean(axis=1)


def early_ratio(errors: Judged, delay: int) -> np.ndarray:
  """f64[S]: E1 / E2, each summed over the first tau rounds of estimates."""
  early = errors.rounds < 2 * delay
  return errors.e1[:, early].sum(axis=1) / errors.e2[:, early].sum(axis=1)


def verdicts(
  arms: Mapping[str, Arm],
  curves: Mapping[str, np.ndarray],
  errors: Judged,
  delay: int,
) -> list[Verdict]:
  """What the runs say; the expectations are those of the binary's header.

  Args:
    arms: by name.
    curves: accuracy on the affected class f64[S, E], by name.
    errors: of the arm that never switches back, which has them to the end.
    delay: tau.
  """

  def verdict(claim, criterion, interval: Interval, unit, **bound):
    shown = f"{interval.mean:.2f}{unit}"
    seeds = interval.seeds
    return Verdict(
      claim, criterion, shown, interval, seeds, judge(interval, **bound)
    )

  rows = []
  if errors.rounds.size:
    rows.append(
      verdict(
        "inversion halves the error of a late update, early",
        f"E1 / E2 over the first {delay} rounds of estimates <= 0.5; expected "
        "PASS",
        mean_interval(early_ratio(errors, delay)),
        "",
        at_most=0.5,
      )
    )
  points = " points"
  for rival in (DIRECT, WEIGHTED):
    rows.append(
      verdict(
        f"area under the affected class's curve above {rival}",
        "difference > 0; expected PASS",
        paired_interval(area(curves[INVERTED]), area(curves[rival])),
        points,
        at_least=1e-9,  # more than 0
      )
    )
  for rival in (DIRECT, WEIGHTED):
    rows.append(
      verdict(
        f"final accuracy not below {rival}",
        "difference >= -1 point; expected PASS",
        paired_interval(100 * arms[INVERTED].final, 100 * arms[rival].final),
        points,
        at_least=-1.0,
      )
    )
  rows.append(
    verdict(
      "the switch back is needed at the end",
      "final accuracy with it - without it > 0; expected PASS",
      paired_interval(100 * arms[INVERTED].final, 100 * arms[UNSWITCHED].final),
      points,
      at_least=1e-9,
    )
  )
  return rows


def write(
  folder: pathlib.Path,
  title: str,
  arms: Sequence[Arm],
  *,
  affected: int,
  delay: int,
  seconds: float,
  notes: Sequence[str],
) -> None:
  """Writes summary.md and its plots.

  Args:
    folder: of the comparison; the records are under it.
    title: of the summary.
    arms: all of them, in the order of the tables.
    affected: the class.
    delay: tau.
    seconds: how long it took.
    notes: paragraphs at the end.
  """

  def records(name):
    place = folder / "final" / name.replace(" ", "_") / METRICS
    return read_jsonl(place)

  curves = {
    arm.name: affected_curve(records(arm.name), affected) for arm in arms
  }
  errors = judged(records(UNSWITCHED), delay)
  switched = records(INVERTED)
  _save_affected(folder / "affected_class.png", arms, curves, delay)
  parts = [
    "## The affected class\n\n" + _table(arms, curves),
    "Area: the mean accuracy on the class over all evaluations. The late "
    f"clients' first updates come in round {delay + 1}.",
    f"![accuracy on class {affected}](affected_class.png)",
  ]
  if errors.rounds.size:
    _save_errors(folder / "errors.png", errors, delay)
    parts += [
      "## Errors of late updates and of inverted ones\n\n"
      + _error_table(errors),
      "Against the update that the client really sent of the same model, as it "
      f"came {delay} rounds later: relative L1 distance / cosine, on the path "
      "of the arm that never switches back.",
      "![errors of late and of inverted updates](errors.png)",
    ]
  parts.append(_switching(switched))
  write_report(
    folder,
    title,
    arms,
    verdicts({arm.name: arm for arm in arms}, curves, errors, delay),
    seconds=seconds,
    notes=[*parts, *notes],
  )


def _table(arms: Sequence[Arm], curves: Mapping[str, np.ndarray]) -> str:
  rows = []
  for arm in arms:
    figures = area(curves[arm.name]), 100 * curves[arm.name][:, -1]
    rows.append(
      [arm.name, *(f"{f.mean():.1f} ± {f.std():.1f}" for f in figures)]
    )
  return markdown_table(["arm", "area (%)", "at the end (%)"], rows)


def _error_table(errors: Judged) -> str:
  """About eight rows over time, means over seeds and over a row's rounds."""
  rows = []
  for part in np.array_split(np.arange(errors.rounds.size), 8):
    if part.size:
      e1, e2, c1, c2 = (curve[:, part].mean() for curve in errors[1:])
      first, last = errors.rounds[part[[0, -1]]]
      rows.append(
        [f"{first} to {last}", f"{e2:.2f} / {c2:.3f}", f"{e1:.2f} / {c1:.3f}"]
      )
  return markdown_table(["estimates of rounds", "late", "inverted"], rows)


def _switching(records: Sequence[Record]) -> str:
  """One paragraph: who was switched back, and when."""
  rounds = [r for r in records if "switched" in r]
  share = np.asarray([r["switched"] for r in rounds], np.float64)  # [R, S]
  start = [
    str(rounds[int(np.argmax(column > 0))]["round"])
    if column.any()
    else "never"
    for column in np.nan_to_num(share).T
  ]
  fit = np.asarray([r["inversion_error"] for r in rounds], np.float64)
  fits = fit[fit > 0]
  error = f"{fits.mean():.2f}" if fits.size else "-"
  return (
    "With the switch: first client switched back in round "
    + ", ".join(start)
    + " (one a seed); at the end "
    + ", ".join(f"{100 * value:.0f} %" for value in share[-1])
    + " of the late clients were. Mean relative error of the inversions "
    f"themselves: {error}."
  )


def _save_affected(path, arms, curves, delay) -> None:
  def draw(axes):
    # means without their bands: eight arms cross each other all the time
    shown = [
      arm._replace(accuracy=curves[arm.name].mean(axis=0, keepdims=True))
      for arm in arms
    ]
    draw_accuracy_rounds(axes, shown)
    axes.axvline(delay, color="#8A8A8A", linewidth=1, linestyle=":")
    axes.set_title("")  # the usual one
    axes.set_title("Accuracy on the slow devices' class, mean", loc="left")
    axes.set_ylabel("accuracy on the class (%)")

  _save(path, (8.5, 4.5), 1, lambda panels: draw(panels[0]))


def _save_errors(path, errors: Judged, delay) -> None:
  def draw(panels):
    for axes, pair, label in (
      (panels[0], (errors.e2, errors.e1), "relative L1 error"),
      (panels[1], (errors.cosine2, errors.cosine1), "cosine with the truth"),
    ):
      names = "late, as it is", "inverted"
      for k, (curve, name) in enumerate(zip(pair, names, strict=True)):
        ends = [mean_interval(column) for column in curve.T]
        mean, low, high = np.array([end[:3] for end in ends]).T
        style = {"color": COLOURS[k], "linestyle": ("--", "-")[k]}
        axes.plot(errors.rounds, mean, label=name, linewidth=2, **style)
        if np.isfinite(high - low).all():
          axes.fill_between(
            errors.rounds, low, high, color=COLOURS[k], alpha=0.16, linewidth=0
          )
      axes.set_xlabel("round of the estimate")
      axes.set_ylabel(label)
      axes.grid(axis="y", color="#E3E3E3")
      axes.legend(frameon=False)
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(max(panels[1].get_ylim()[0], -1), 1.02)
    panels[0].set_title("Inverted against late updates", loc="left")

  _save(path, (9.5, 3.8), 2, draw)


def _save(path: pathlib.Path, size, panels: int, draw: Any) -> None:
  """Writes a PNG, whole or not at all."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=size, dpi=120, layout="constrained")
  FigureCanvasAgg(figure)
  draw(figure.subplots(1, panels, squeeze=False)[0])
  for axes in figure.axes:
    axes.spines[["right", "top"]].set_visible(False)
    axes.set_axisbelow(True)
  write_bytes_atomic(path, png(figure))
