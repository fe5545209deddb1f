"""Pictures of `plan_bench`: speed-ups, and who computes what when."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_het.seqpar.schedule import starts
from fedjax_het.seqpar.types import Plan
from fedjax_het.training.plots import png

_INK, _FAINT, _IDLE = "#333333", "#8A8A8A", "#E4E4E4"
_TITLES = {
  "wikipedia": "Wikipedia (real lengths)",
  "github_like": "GitHub-like (mixture)",
  "commoncrawl_like": "CommonCrawl-like (mixture)",
}
# label, colour and marker of each arm that is drawn
_ARMS = {
  "adaptive": ("adaptive: one degree a batch", "#8A8A8A", "s"),
  "greedy": ("greedy, like Megatron-LM", "#E69F00", "^"),
  "shapes": ("shapes (barriers, like FlexSP)", "#0072B2", "o"),
  "tree": ("tree (no barriers)", "#009E73", "D"),
}
_PLANS = {
  "static": "one static degree",
  "shapes": "shapes: barriers between micro-batches",
  "tree": "tree: no barriers",
}
_STYLE: dict[str, Any] = {
  "axes.edgecolor": _FAINT,
  "axes.labelcolor": _INK,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 11,
  "axes.titleweight": "bold",
  "font.size": 10,
  "legend.frameon": False,
  "text.color": _INK,
  "xtick.color": _INK,
  "ytick.color": _INK,
}


def speedups(settings: Sequence[Any], published: Callable) -> bytes:
  """A PNG: speed-up over static of every planner, published beside it."""
  from fedjax_het.training.stats import mean_interval

  sources = list(dict.fromkeys(s.source for s in settings))
  most = max(sum(s.source == source for s in settings) for source in sources)

  def draw(figure):
    panels = figure.subplots(1, len(sources), sharex=True, squeeze=False)[0]
    for axes, source in zip(panels, sources, strict=True):
      own = [s for s in settings if s.source == source]
      axes.axvline(1, color=_FAINT, linewidth=1)
      for y, setting in enumerate(own):
        axes.axhline(y, color="#EEEEEE", linewidth=8, zorder=0)
        for arm, (label, colour, marker) in _ARMS.items():
          gain = mean_interval(setting.ratio("static", arm))
          if arm == "shapes" and np.isfinite(gain.high):
            axes.plot(
              [gain.low, gain.high],
              [y, y],
              color=colour,
              linewidth=2,
              alpha=0.5,
            )
          axes.plot(
            gain.mean, y, marker, color=colour, markersize=7, label=label
          )
        axes.plot(
          published(setting)[0],
          y,
          "|",
          color="black",
          markersize=17,
          markeredgewidth=2,
          label="FlexSP over DeepSpeed-Ulysses, published",
        )
      names = [f"{s.size.upper()} {s.context}K" for s in own]
      axes.set_yticks(range(len(own)), names)
      axes.set_ylim(most - 0.4, -0.6)
      axes.tick_params(axis="y", length=0)
      axes.spines["left"].set_visible(False)
      axes.set_title(_TITLES.get(source, source))
      axes.set_xlabel("times as fast as static")
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
      unique.values(),
      unique.keys(),
      loc="outside lower center",
      ncols=3,
      fontsize=9,
    )

  return _png(draw, (4.3 * len(sources), 1.9 + 0.38 * most))


def plans(setting: Any) -> bytes:
  """A PNG: devices against time for one batch, coloured by degree."""
  chosen = {arm: setting.example[arm] for arm in _PLANS}
  degrees = sorted({t.degree for p in chosen.values() for t in p.tasks})
  end = max(made.seconds for made in chosen.values())

  def draw(figure):
    from matplotlib.patches import Patch

    colours = _by_degree(degrees)
    rows = figure.subplots(len(chosen), 1, sharex=True)
    for axes, (arm, made) in zip(rows, chosen.items(), strict=True):
      _gantt(axes, made, colours)
      busy = made.device_seconds.mean() / made.seconds
      axes.set_title(
        f"{_PLANS[arm]}: {made.seconds:.1f} s, devices busy {100 * busy:.0f} %"
      )
      axes.set_ylabel("device")
      axes.set_xlim(0, end)
    rows[-1].set_xlabel(
      f"modelled seconds of one step: GPT {setting.size.upper()}, "
      f"{setting.context}K, {len(chosen['shapes'].lengths)} sequences, "
      f"{_TITLES.get(setting.source, setting.source)}"
    )
    figure.legend(
      [*(Patch(color=colours[d]) for d in degrees), Patch(color=_IDLE)],
      [*(f"group of {d}" for d in degrees), "idle"],
      loc="outside lower center",
      ncols=len(degrees) + 1,
      handlelength=1.2,
      columnspacing=1.4,
    )

  return _png(draw, (10, 2.1 * len(chosen) + 0.9))


def _by_degree(degrees: Sequence[int]) -> dict[int, Any]:
  """Dark for large groups; the same colour for a degree in every picture."""
  from matplotlib import colormaps

  shade = colormaps["viridis_r"]
  return {d: shade(min(1.0, 0.05 + np.log2(d) / 6.5)) for d in degrees}


def _gantt(axes: Any, made: Plan, colours: dict[int, Any]) -> None:
  from matplotlib.collections import PatchCollection
  from matplotlib.patches import Rectangle

  begin = starts(made.tasks, made.task_seconds, made.barrier, made.num_devices)
  boxes = [
    Rectangle((x, task.first), width, task.degree)
    for task, x, width in zip(made.tasks, begin, made.task_seconds, strict=True)
  ]
  whole = Rectangle((0, 0), made.seconds, made.num_devices, color=_IDLE)
  axes.add_patch(whole)
  axes.add_collection(
    PatchCollection(
      boxes,
      facecolor=[colours[task.degree] for task in made.tasks],
      edgecolor="white",
      linewidth=0.6,
    )
  )
  if made.barrier:
    for x in np.unique(begin)[1:]:
      axes.axvline(x, color=_INK, linewidth=0.8, linestyle=(0, (3, 2)))
  axes.set_ylim(made.num_devices, 0)
  axes.set_yticks(np.linspace(0, made.num_devices, 5, dtype=int))


def _png(draw: Callable, size: tuple[float, float]) -> bytes:
  # No pyplot: it keeps global state and may want a display.
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    figure = Figure(size, dpi=130, layout="constrained")
    draw(figure)
    return png(figure)
