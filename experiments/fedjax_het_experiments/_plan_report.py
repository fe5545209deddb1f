"""The report of `long_context_step`: verdicts, a table, a picture."""

import pathlib
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from fedjax_het.training.files import write_bytes_atomic, write_text_atomic
from fedjax_het.training.plots import COLOURS, STYLES, png
from fedjax_het.training.report import (
  markdown_table,
  run_facts,
  summary_markdown,
  verdict_table,
)
from fedjax_het.training.stats import Verdict
from fedjax_het_experiments._plan_arms import Arm, Setting

_CLOSE = 1e-4  # sums in another order explain so much after some steps
_HIDDEN = 0.9


def verdicts(arms: Sequence[Arm]) -> list[Verdict]:
  """What the runs say."""
  losses = np.array([[s.loss for s in arm.steps] for arm in arms])
  spread = (losses.max(0) / losses.min(0) - 1).max()
  late = {
    arm.name: sum(s.compilations for s in arm.second_pass)
    for arm in arms
    if arm.name.endswith("/single")
  }
  hidden = {arm.name: arm.overlap for arm in arms}
  worst = min(hidden, key=hidden.__getitem__)
  found = [
    Verdict(
      "every plan trains the same model",
      f"losses of {len(arms)} arms within {_CLOSE:g} in every step",
      f"{spread:.1e} apart at most",
      None,
      1,
      "PASS" if spread < _CLOSE else "FAIL",
    ),
    Verdict(
      "the next plan is made while the devices compute",
      f"at least {100 * _HIDDEN:.0f} % of the planning hidden but the first",
      f"{100 * hidden[worst]:.1f} % ({worst}, the least)",
      None,
      1,
      "PASS" if hidden[worst] >= _HIDDEN else "FAIL",
    ),
  ]
  if late:
    found.append(
      Verdict(
        "one program runs every plan",
        "single arms compile nothing in the second pass",
        f"{sum(late.values())} compilations",
        None,
        1,
        "FAIL" if any(late.values()) else "PASS",
      )
    )
  return found


def write_plan_report(
  workdir: pathlib.Path,
  arms: Sequence[Arm],
  setting: Setting,
  found: str,
  seconds: float,
) -> None:
  """Writes summary.md and its picture, and prints the verdicts.

  Args:
    workdir: where to.
    arms: what was measured.
    setting: what they shared.
    found: what is in the batches, in words.
    seconds: how long it all took.
  """
  judged = verdicts(arms)
  title = "Long-context steps under several plans"
  picture = workdir / "losses_times_degrees.png"
  write_bytes_atomic(picture, draw(arms))
  shape = setting.model.shape
  facts = run_facts(seconds=seconds) | {
    "text": found,
    "model": f"{shape.layers} layers, width {shape.width}, {shape.heads} heads "
    f"({shape.kv_heads} for keys and values), {setting.capacity} tokens a "
    f"device, all-to-all over at most {setting.limit}",
  }
  table = markdown_table(*rows(arms))
  notes = [
    "## Arms",
    table,
    "Steps of the second pass; medians, and tokens/s over all of them.  CPU "
    "seconds are the whole process's, planner included: wall time on a busy "
    "machine says little, and the planner shares the cores with the devices.  "
    "Computed: tokens that devices computed for one of the batch (padding).  "
    "Programs: compiled or loaded from the cache, in all steps of the arm.  "
    "Modelled: the planner's own forecast at a nominal rate, "
    "every device on a processor of its own.",
  ]
  text = summary_markdown(title, [], judged, facts, [picture], notes)
  write_text_atomic(workdir / "summary.md", text)
  console = Console()
  console.print(verdict_table(judged, title))
  console.print(table, markup=False, soft_wrap=True)
  console.print(f"report: {workdir / 'summary.md'}", markup=False)


def rows(arms: Sequence[Arm]) -> tuple[tuple[str, ...], list[list[str]]]:
  """Headings and rows of the table of arms."""
  headings = (
    "arm",
    "loss first, last",
    "step s",
    "CPU s",
    "tokens/s",
    "computed",
    "groups a step",
    "programs",
    "compilation s",
    "plan ms (CPU)",
    "hidden",
    "modelled s",
  )
  cells = []
  for arm in arms:
    second, groups = arm.second_pass, [len(s.plan.tasks) for s in arm.steps]
    computed = sum(s.computed for s in second) / sum(s.tokens for s in second)
    modelled = np.median([s.plan.seconds for s in second])
    plan_ms = 1e3 * np.median([s.ready.seconds for s in second])
    cells.append(
      [
        arm.name,
        f"{arm.steps[0].loss:.4f}, {arm.steps[-1].loss:.4f}",
        f"{arm.median('seconds'):.2f}",
        f"{arm.median('cpu_seconds'):.2f}",
        f"{arm.tokens_per_second:.0f}",
        f"{computed:.2f}",
        f"{min(groups)} to {max(groups)}",
        str(sum(s.compilations for s in arm.steps)),
        f"{sum(s.compile_seconds for s in arm.steps):.1f}",
        f"{plan_ms:.0f} ({1e3 * arm.median('plan_cpu_seconds'):.0f})",
        f"{100 * arm.overlap:.1f} %",
        f"{modelled:.3f}",
      ]
    )
  return headings, cells


def draw(arms: Sequence[Arm]) -> bytes:
  """A PNG: losses, time of a step, and who works with whom."""
  from matplotlib.figure import Figure

  figure = Figure((13.5, 3.9), dpi=150, layout="constrained")
  losses, times, degrees = figure.subplots(1, 3, width_ratios=[1.2, 1, 1])
  names = [arm.name for arm in arms]
  for k, arm in enumerate(arms):
    losses.plot(
      range(1, len(arm.steps) + 1),
      [s.loss for s in arm.steps],
      color=COLOURS[k % len(COLOURS)],
      linestyle=STYLES[k % len(STYLES)],
      linewidth=2.5,
      label=arm.name,
    )
  losses.set_title("Loss: the same whatever the plan", loc="left")
  losses.set_xlabel("step")
  losses.set_ylabel("nats a byte")
  losses.legend(frameon=False)
  for k, arm in enumerate(arms):
    seconds = arm.median("seconds")
    times.barh(k, seconds, color=COLOURS[k % len(COLOURS)])
    times.annotate(
      f" {arm.tokens_per_second:,.0f} tokens/s", (seconds, k), va="center"
    )
  times.set_title("Seconds a step", loc="left")
  times.margins(x=0.45)
  every = sorted({d for arm in arms for d in arm.degrees})
  for i, degree in enumerate(every):
    share = [100 * arm.degrees.get(degree, 0) for arm in arms]
    below = [
      100 * sum(arm.degrees.get(d, 0) for d in every[:i]) for arm in arms
    ]
    shade = str(0.85 - 0.75 * i / max(1, len(every) - 1))
    degrees.barh(range(len(arms)), share, left=below, color=shade, label=degree)
  degrees.set_title("Tokens by degree of their group (%)", loc="left")
  degrees.set_xlim(0, 100)
  degrees.legend(
    frameon=False,
    ncols=len(every),
    loc="upper center",
    bbox_to_anchor=(0.5, -0.1),
    title="devices",
  )
  for axes in (times, degrees):
    axes.set_yticks(
      range(len(arms)), names if axes is times else [""] * len(arms)
    )
    axes.invert_yaxis()
  for axes in (losses, times, degrees):
    axes.spines[["top", "right"]].set_visible(False)
  return png(figure)
