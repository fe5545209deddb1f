"""A Gantt picture of a schedule: who trained when, and in which group."""

import pathlib
from collections.abc import Sequence

import numpy as np

from fedjax_het.devices.events import Merge, Simulation, Task
from fedjax_het.training.files import write_bytes_atomic
from fedjax_het.training.plots import COLOURS, png
from fedjax_het_experiments._async_runs import Contender, Problem

_CLIENTS, _MERGES = 30, 400  # most rows, and most lines, of a panel


def save_gantt(
  path: pathlib.Path,
  problem: Problem,
  rows: Sequence[tuple[Contender, float]],
  *,
  share: float = 0.25,
) -> pathlib.Path:
  """Draws the first part of several schedules, one above the other.

  Args:
    path: of the PNG.
    problem: whose clients; slow ones are drawn below, of many clients a few
      of all speeds.
    rows: (contender, its knob), a panel each.
    share: of the horizon that is shown.
  """
  from matplotlib.figure import Figure

  until = share * problem.horizon
  order = np.argsort(-problem.speeds)
  few = np.linspace(0, len(order) - 1, min(len(order), _CLIENTS))
  order = order[few.round().astype(int)]
  height = {int(client): place for place, client in enumerate(order)}
  tall = 0.18 * len(order) + 0.7
  figure = Figure((10, tall * len(rows) + 0.3), dpi=150, layout="constrained")
  panels = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
  for axes, (contender, knob) in zip(panels, rows, strict=True):
    tasks, merges = _played(problem, contender, knob, until)
    for task in tasks:
      if task.client not in height:
        continue
      axes.barh(
        height[task.client],
        min(task.arrives, until) - task.sent,
        left=task.sent,
        height=0.8,
        color=_colour(task),
        edgecolor="white",
        linewidth=0.6,
      )
    if len(merges) <= _MERGES:
      for at in merges:
        axes.axvline(at, color="#333333", linewidth=0.5, alpha=0.6)
    axes.set_xlim(0, until)
    axes.set_yticks([])
    axes.set_ylabel("clients\nslow      fast", fontsize=8)
    title = f"{contender.name} (merges: {len(merges):,})"
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["right", "top", "left"]].set_visible(False)
  panels[-1].set_xlabel(
    "virtual seconds; a bar is a client at work, its colour its group, a line "
    f"a merge (up to {_MERGES})"
  )
  write_bytes_atomic(path, png(figure))
  return path


def _played(problem, contender, knob, until):
  """(tasks begun, times of merges) up to a time."""
  scheduler = contender.schedule(problem, 1.0 if contender.proximal else knob)
  tasks, merges = [], []
  simulation = Simulation(scheduler, problem.duration, stops=[until])
  for event in simulation:
    if isinstance(event, Task):
      tasks.append(event)
    elif isinstance(event, Merge):
      merges.append(simulation.seconds)
  return tasks, merges


def _colour(task: Task) -> str:
  tag = task.tag[0] if isinstance(task.tag, tuple) else task.tag
  if tag is None or tag < 0:  # no groups, or not in one yet
    return "#B5B5B5"
  return COLOURS[tag % len(COLOURS)]
