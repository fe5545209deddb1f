"""The planner for steps with barriers: split, pack, move between micro-batches.

The blaster splits the batch into M micro-batches of similar lengths, for M
from the fewest that memory allows to two more; `microbatch.pack` tries many
shapes for each.  Then sequences may also move between micro-batches: those of
long sequences often leave gaps that short ones fill.  The M with the smallest
sum is kept.

References:
  Wang et al., FlexSP, 2025, arXiv:2412.01523: the problem and the blaster.
  There the micro-batches are solved by a mixed-integer program (`milp`).
"""

import math
from collections.abc import Iterator

import numpy as np

from fedjax_het.seqpar import bounds, split
from fedjax_het.seqpar.improve import improve
from fedjax_het.seqpar.microbatch import Packed, pack
from fedjax_het.seqpar.problem import Problem
from fedjax_het.seqpar.types import Task

MORE_STEPS = 2  # micro-batches beyond the fewest
_HOPE = 1.02  # what is this much slower before the moves is not pursued
_TURNS = (400, 1_500)  # least and most moves between micro-batches


def shapes(problem: Problem) -> list[Task]:
  """Plans a step with barriers.

  Args:
    problem: the batch.

  Returns:
    The tasks of the best plan that was found.
  """
  fewest = split.fewest_steps(problem.lengths, problem.capacity)
  best, found = math.inf, []
  for steps in step_counts(fewest, len(problem.lengths)):
    if found and steps > fewest + MORE_STEPS:
      break
    parts = split.blaster(problem.lengths, steps)
    least = [bounds.work_bound(problem.part(part)) for part in parts]
    total, packed = sum(least), []
    for part, bound in zip(parts, least, strict=True):
      if total >= best * _HOPE:
        break
      packed.append(pack(problem.part(part), bound))
      total += packed[-1].seconds - bound
    if math.isfinite(total) and total < best * _HOPE:
      moved = _moved(problem, parts, packed)
      total = sum(each.seconds for _, each in moved)
      if total < best:
        best, found = total, moved
  tasks = []
  for step, (part, each) in enumerate(found):
    again = pack(problem.part(part))  # its sequences are others now
    better = min(each, again, key=lambda packed: packed.seconds)
    tasks += better.tasks(step, part, problem.kinds.degree)
  return tasks


def _moved(
  problem: Problem, parts: list[np.ndarray], packed: list[Packed]
) -> list[tuple[np.ndarray, Packed]]:
  """Lets sequences move between the micro-batches; those left empty go.

  Args:
    problem: the batch.
    parts: positions of each micro-batch's sequences.
    packed: each micro-batch.

  Returns:
    (positions, packed) of each micro-batch.
  """
  sizes = [len(each.kind) for each in packed]
  start = np.cumsum([0, *sizes])
  step = np.repeat(np.arange(len(sizes)), sizes)
  group = np.zeros(len(problem.lengths), np.int64)
  for at, part, each in zip(start, parts, packed, strict=False):
    group[part] = at + each.group
  kind = np.concatenate([each.kind for each in packed])
  most = min(_TURNS[0] + len(group) // 2, _TURNS[1])
  ends, group = improve(problem, kind, step, group, most=most)
  found = []
  for m, each in enumerate(packed):
    part = np.nonzero(step[group] == m)[0]
    if part.size:
      own = group[part] - start[m]
      found.append((part, Packed(float(ends[m]), each.kind, each.first, own)))
  return found


def step_counts(fewest: int, most: int) -> Iterator[int]:
  """fewest, fewest + 1, ..., then in larger strides up to `most`.

  What fits into the memory of all devices together need not fit into groups;
  one sequence a micro-batch always does.
  """
  steps = fewest
  while steps < most:
    yield steps
    steps += 1 if steps <= fewest + MORE_STEPS else max(1, steps // 4)
  yield most
