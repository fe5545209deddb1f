"""The laminar planner: no barriers, groups nested in larger groups.

Every sequence goes to an aligned block of devices.  A device first computes
the micro-batches of the largest block around it, then those of the next, down
to its own; blocks are nested, so a device never waits for one outside, and the
step ends with the device that has most.  Memory limits each micro-batch, not
the step.  Only legal where a micro-batch needs no collective over all devices
(parameters replicated, or ZeRO below stage 3).

For a target time T the sequences are dealt longest first, each to the place
that costs fewest device-seconds (a new micro-batch costs its fixed time too)
and, of those, to the busiest block that still ends by T.  Bisection on T; then
smaller T with orders that are only roughly longest first.
"""

import math
from typing import NamedTuple

import numpy as np

from fedjax_het.seqpar import bounds
from fedjax_het.seqpar.problem import Problem
from fedjax_het.seqpar.types import Task

_FIRST = 0.04  # the first target is this far above the bound, then twice, ...
_CLOSE = 2e-3
_RUNS = 9  # targets that are tried
_ORDERS, _ORDERED = 20, 10_000  # other orders, and sequences dealt in them
_NOISE = 0.5  # of the logarithm of a length, where it decides the order
_LESS = 8e-3  # relative, what another order must gain


class _Bin:
  """A micro-batch that still takes sequences: what room is left, and which."""

  def __init__(self, room: int):
    self.room = room
    self.sequences: list[int] = []


class _Dealt(NamedTuple):
  """seconds: of the busiest device.  bins: (degree, block) -> micro-batches."""

  seconds: float
  bins: dict[tuple[int, int], list[_Bin]]


def tree(problem: Problem, *, seed: int = 0) -> list[Task]:
  """Plans a step without barriers.

  Args:
    problem: the batch.
    seed: of the orders that are tried beside "longest first".

  Returns:
    The tasks of the best laminar plan that was found.
  """
  bound = bounds.step_bound(problem, barrier=False)
  order = np.argsort(-problem.lengths, kind="stable")
  low, high, best = 1.0, math.inf, None  # targets over the bound
  runs = 0
  while best is None or (runs < _RUNS and high - low > _CLOSE):
    factor = (low + high) / 2 if best else 1 + 2 * max(low - 1, _FIRST / 2)
    dealt = _deal(problem, order, factor * bound)
    runs += 1
    if dealt is None:
      low = factor
    else:
      best, high = dealt, dealt.seconds / bound
  rng, less = np.random.default_rng(seed), _LESS
  for _ in range(min(_ORDERS, _ORDERED // len(order))):
    noise = np.exp(_NOISE * rng.standard_normal(len(order)))
    other = np.argsort(-problem.lengths * noise, kind="stable")
    dealt = _deal(problem, other, best.seconds * (1 - less))
    if dealt is None:
      less *= 0.75
    else:
      best = dealt
  return _tasks(problem, best)


def _deal(problem: Problem, order: np.ndarray, target: float) -> _Dealt | None:
  """Deals all sequences so that no device ends after target, or gives up."""
  kinds, n = problem.kinds, problem.num_devices
  degrees = sorted(kinds.blocks)
  level = [degrees.index(d) for d in kinds.degree]
  busy = [np.zeros(n // d) for d in degrees]  # of each block's busiest device
  room = [np.zeros(n // d, np.int64) for d in degrees]  # of its emptiest bin
  bins: dict[tuple[int, int], list[_Bin]] = {}
  # which blocks are of a kind; None where all of the degree are
  own = [
    None if (kinds.blocks[d] == j).all() else kinds.blocks[d] == j
    for j, d in enumerate(kinds.degree)
  ]
  # plain lists: single NumPy elements are slow to reach
  work = problem.seconds * kinds.degree
  cheapest = np.argsort(work, axis=1, kind="stable").tolist()
  opening = (kinds.degree * kinds.fixed).tolist()
  work, seconds = work.tolist(), problem.seconds.tolist()
  lengths, fixed = problem.lengths.tolist(), kinds.fixed.tolist()
  for k in order.tolist():
    length, best, place = lengths[k], math.inf, None
    for j in cheapest[k]:
      cost = work[k][j]
      if cost >= best:
        break
      g, latest = level[j], target - seconds[k][j]
      may = busy[g] <= latest
      if own[j] is not None:
        may &= own[j]
      block = _busiest(busy[g], may & (room[g] >= length))
      if block is not None:
        best, place = cost, (g, block, j, False)
        break  # any other kind costs more
      cost += opening[j]
      if cost < best:
        block = _busiest(busy[g], may & (busy[g] <= latest - fixed[j]))
        if block is not None:
          best, place = cost, (g, block, j, True)
    if place is None:
      return None
    g, block, j, new = place
    held = bins.setdefault((degrees[g], block), [])
    if new:
      chosen = _Bin(int(kinds.tokens[j]))
      held.append(chosen)
    else:
      fitting = (b for b in held if b.room >= length)
      chosen = min(fitting, key=lambda b: b.room)
    chosen.room -= length
    chosen.sequences.append(k)
    room[g][block] = max(b.room for b in held)
    _spend(busy, degrees, g, block, seconds[k][j] + new * fixed[j])
  return _Dealt(float(busy[-1].max()), bins)


def _busiest(busy: np.ndarray, may: np.ndarray) -> int | None:
  """The busiest of the blocks that may take it; None if none may."""
  score = np.where(may, busy, -1.0)
  block = int(score.argmax())
  return block if score[block] >= 0 else None


def _spend(busy, degrees, g: int, block: int, seconds: float) -> None:
  """Adds to the block, to those inside, and to the maxima of those around."""
  first = block * degrees[g]
  for h in range(g + 1):
    busy[h][first // degrees[h] : (first + degrees[g]) // degrees[h]] += seconds
  highest = busy[g][block]
  for h in range(g + 1, len(degrees)):
    around = first // degrees[h]
    if busy[h][around] >= highest:
      break
    busy[h][around] = highest


def _tasks(problem: Problem, dealt: _Dealt) -> list[Task]:
  """Numbers the steps: larger degrees first, one after another on a device."""
  upcoming = np.zeros(problem.num_devices, np.int64)
  tasks = []
  for degree, block in sorted(dealt.bins, key=lambda at: (-at[0], at[1])):
    devices = slice(block * degree, (block + 1) * degree)
    for each in dealt.bins[degree, block]:
      step = int(upcoming[devices].max())
      tasks.append(Task(step, block * degree, degree, tuple(each.sequences)))
      upcoming[devices] = step + 1
  return tasks
