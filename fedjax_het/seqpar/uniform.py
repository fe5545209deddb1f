"""Baselines with one degree for all groups: static, adaptive.

Static sequence parallelism chooses the degree once for a training run, so that
its longest context fits; adaptive chooses the best one for each batch.
"""

import math

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import schedule
from fedjax_het.seqpar.problem import Problem
from fedjax_het.seqpar.types import Task

_FILL = 0.9  # of a group's memory, as FlexSP's baseline packs


def static(problem: Problem, *, degree: int | None = None) -> list[Task]:
  """Packs the batch into groups of one degree, step after step.

  Best fit, longest first, into 90 % of a group's memory; the sequences of the
  last step are dealt again to the group that ends first.

  Args:
    problem: the batch.
    degree: of all groups; None: the smallest that holds the longest sequence
      (a real run needs the one for its longest context).

  Returns:
    The tasks, with barriers.

  Raises:
    UserError: if the degree is not offered or does not hold every sequence.
  """
  kinds, longest = problem.kinds, int(problem.lengths.max())
  room = {d: int(kinds.tokens[b].max()) for d, b in kinds.blocks.items()}
  if degree is None:
    degree = min(d for d in room if room[d] >= longest)
  if degree not in room:
    raise UserError(f"degree {degree} is not offered, only {sorted(room)} are")
  if room[degree] < longest:
    worst = int(problem.lengths.argmax())
    raise UserError(
      f"sequence {worst} has {longest} tokens, but a group of degree {degree} "
      f"holds {room[degree]}: use a larger degree"
    )
  kind = kinds.blocks[degree]
  holds = kinds.tokens[kind]
  usual = np.maximum(
    (_FILL * holds).astype(np.int64), np.minimum(holds, longest)
  )
  left = np.zeros(0, np.int64)  # tokens, of group i % len(kind) in step i //
  group = np.zeros(len(problem.lengths), np.int64)
  order = np.argsort(-problem.lengths, kind="stable")
  for k in order:
    length = problem.lengths[k]
    while not (left >= length).any():
      left = np.append(left, usual[left.size % kind.size])
    group[k] = np.where(left >= length, left, np.inf).argmin()
    left[group[k]] -= length
  return _tasks(_even_out(problem, group, order, kind), kind.size, degree)


def adaptive(problem: Problem) -> list[Task]:
  """The best of `static` over all degrees that hold the batch."""
  best, found = math.inf, []
  for degree in problem.kinds.blocks:
    holds = problem.kinds.tokens[problem.kinds.blocks[degree]].max()
    if holds >= problem.lengths.max():
      tasks = static(problem, degree=degree)
      seconds = schedule.predict(problem, tasks, barrier=True)
      if seconds < best:
        best, found = seconds, tasks
  return found


def _even_out(problem: Problem, group, order, kind) -> np.ndarray:
  """Deals the last step again: each to the group that then ends first."""
  last = group.max() // kind.size * kind.size
  ends = problem.kinds.fixed[kind].astype(float)
  left = problem.kinds.tokens[kind].copy()
  again = group.copy()
  for k in order[group[order] >= last]:
    after = np.where(
      left >= problem.lengths[k], ends + problem.seconds[k, kind], np.inf
    )
    g = int(after.argmin())
    if not np.isfinite(after[g]):
      return group
    ends[g], again[k] = after[g], last + g
    left[g] -= problem.lengths[k]
  return again


def _tasks(group: np.ndarray, per_step: int, degree: int) -> list[Task]:
  return [
    Task(
      int(g) // per_step,
      int(g) % per_step * degree,
      degree,
      tuple(np.nonzero(group == g)[0].tolist()),
    )
    for g in np.unique(group)
  ]
