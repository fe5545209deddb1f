"""A greedy planner in the manner of Megatron-LM's hybrid context parallelism.

Every sequence gets the smallest degree whose group can hold it, whatever its
time, and work is taken as length^2 / degree, attention alone.  Step by step,
longest first: a new group while devices are free, else the group of that
degree with least work that has room, else the next step.

It is written from the scheduler's published behaviour, not ported, and packs
each group's sequences into one micro-batch, which flatters it.

References:
  NVIDIA Megatron-LM, megatron/core/pipeline_parallel/hybrid_cp_schedule.py
  (BalancedCPScheduler).
"""

import math

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar.problem import Problem
from fedjax_het.seqpar.types import Task


class _Group:
  """An open group: its block, what room is left, its work, its sequences."""

  def __init__(self, first: int, room: int):
    self.first, self.room, self.work = first, room, 0.0
    self.sequences: list[int] = []


def greedy(problem: Problem) -> list[Task]:
  """Plans a step with barriers.

  Args:
    problem: the batch; all devices must be alike.

  Returns:
    The tasks.

  Raises:
    UserError: if devices differ in speed or memory.
  """
  kinds = problem.kinds
  if len(kinds.degree) > len(kinds.blocks):
    raise UserError(
      "the greedy planner needs devices that are alike: use shapes or auto"
    )
  need = (problem.lengths[:, None] <= kinds.tokens).argmax(1)  # ascending
  waiting = sorted(
    range(len(problem.lengths)),
    key=lambda k: (-kinds.degree[need[k]], -problem.lengths[k]),
  )
  tasks, step = [], 0
  while waiting:
    groups, waiting = _fill(problem, need, waiting)
    for degree, each in groups.items():
      tasks += [Task(step, g.first, degree, tuple(g.sequences)) for g in each]
    step += 1
  return tasks


def _fill(problem: Problem, need: np.ndarray, waiting: list[int]):
  """One step: (degree -> groups, what has to wait)."""
  groups: dict[int, list[_Group]] = {}
  used, later = 0, []
  for k in waiting:
    length, degree = int(problem.lengths[k]), int(problem.kinds.degree[need[k]])
    # degrees fall, so the next free devices are aligned
    if used + degree <= problem.num_devices:
      chosen = _Group(used, int(problem.kinds.tokens[need[k]]))
      groups.setdefault(degree, []).append(chosen)
      used += degree
    else:
      fitting = [g for g in groups.get(degree, []) if g.room >= length]
      chosen = min(fitting, key=lambda g: g.work, default=None)
    if chosen is None:
      later.append(k)
    else:
      chosen.room -= length
      chosen.work += math.pow(length, 2) / degree
      chosen.sequences.append(k)
  return groups, later
