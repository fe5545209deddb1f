"""Packs one micro-batch: which groups, and which sequence goes where.

1. All shapes (how many groups of each degree), or on a large cluster those
   near two guesses, are packed at once: each sequence, longest first, into the
   group that ends first.
2. Few long sequences are hard to pack.  They also go to the cheapest group
   that ends by a target time, for six targets from the work bound upwards.
3. The best few are improved by moving and swapping sequences.
"""

import math
from typing import NamedTuple

import numpy as np

from fedjax_het.seqpar import assign, bounds, layouts
from fedjax_het.seqpar.improve import improve
from fedjax_het.seqpar.problem import Problem
from fedjax_het.seqpar.types import Task

_SMALL = 40  # sequences; up to here targets are tried too
_TARGETS = np.array([1.0, 1.02, 1.05, 1.12, 1.25, 1.5])
_IMPROVED = 3  # candidates that the local search gets
_CLOSE = 1e-3  # relative distance to the bound that ends the search
_CELLS = 8e6  # sequences x groups x shapes to be packed at once, about
_SHAPES = 2048  # at most
_SHAPES_UNLIKE = 128  # where devices differ: each is put in place by itself


class Packed(NamedTuple):
  """A micro-batch in its groups.

  seconds: of the slowest group; inf if nothing fits.
  kind, first: i64[P], the groups' kinds and first devices.
  group: i64[S], the group of each sequence.
  """

  seconds: float
  kind: np.ndarray
  first: np.ndarray
  group: np.ndarray

  def tasks(self, step: int, part: np.ndarray, degree: np.ndarray):
    """The tasks, where `part` i64[S] numbers the sequences in the batch."""
    return [
      Task(
        step,
        int(self.first[g]),
        int(degree[self.kind[g]]),
        tuple(int(k) for k in part[self.group == g]),
      )
      for g in range(len(self.kind))
    ]


def pack(problem: Problem, bound: float | None = None) -> Packed:
  """Packs all the sequences into one micro-batch.

  Args:
    problem: the micro-batch.
    bound: seconds below which it cannot be; by default the work bound.

  Returns:
    The best that was found; its seconds are inf if nothing fitted.
  """
  bound = bounds.work_bound(problem) if bound is None else bound
  laid = _layouts(problem, bound)
  dealt = assign.earliest(problem, laid.kind)
  candidates = [(dealt, np.arange(len(laid.kind)))]
  if len(problem.lengths) <= _SMALL:
    some = np.nonzero(_may_beat(problem, laid.kind, dealt.seconds.min()))[0]
    each = np.repeat(some, len(_TARGETS))
    target = np.tile(bound * _TARGETS, len(some))
    dealt = assign.tightest(problem, laid.kind[each], target)
    candidates.append((dealt, each))
  seconds = np.concatenate([dealt.seconds for dealt, _ in candidates])
  group = np.concatenate([dealt.group for dealt, _ in candidates], axis=1)
  which = np.concatenate([each for _, each in candidates])
  best = Packed(math.inf, laid.kind[0], laid.first[0], group[:, 0])
  for i in np.argsort(seconds, kind="stable")[:_IMPROVED]:
    if not np.isfinite(seconds[i]) or best.seconds <= bound * (1 + _CLOSE):
      break
    exists = laid.kind[which[i]] >= 0
    kind, first = laid.kind[which[i]][exists], laid.first[which[i]][exists]
    (ends,), dealt = improve(
      problem, kind, 0 * kind, group[:, i], bound=bound * (1 + _CLOSE)
    )
    if ends < best.seconds:
      best = Packed(float(ends), kind, first, dealt)
  return best


def _layouts(problem: Problem, bound: float) -> layouts.Layouts:
  """All layouts, or as many as time allows near two guesses of a good one."""
  kinds, n = problem.kinds, problem.num_devices
  degrees = sorted(kinds.blocks)
  cells = len(problem.lengths) * n // degrees[0]
  most = int(np.clip(_CELLS // cells, 8, _SHAPES))
  if len(kinds.degree) > len(degrees):
    most = min(most, _SHAPES_UNLIKE)
  shapes = layouts.few_shapes(n, degrees, most)
  if shapes is None:
    guesses = (_fluid(problem, bound), _occupied(problem, 1.05 * bound))
    near = [
      layouts.shapes_near(n, degrees, guess, most // 2) for guess in guesses
    ]
    shapes = np.unique(np.concatenate(near), axis=0)
  # one that holds every sequence: all devices in the largest groups
  shapes = np.concatenate([shapes, layouts.widest(n, degrees)])
  laid = layouts.place(shapes, kinds, n)
  largest = np.where(laid.kind >= 0, kinds.tokens[laid.kind], 0).max(1)
  keep = largest >= problem.lengths.max()
  return layouts.Layouts(laid.kind[keep], laid.first[keep])


def _may_beat(problem: Problem, kind: np.ndarray, seconds: float) -> np.ndarray:
  """Which layouts i64[n, P] have room for their long sequences, bool[n].

  What needs at least degree d to end within the seconds must fit into the
  time and memory of the groups of at least that degree.
  """
  kinds, may = problem.kinds, np.ones(len(kind), bool)
  if not np.isfinite(seconds):
    return may
  degree = np.where(kind >= 0, kinds.degree[kind], 0)
  room = seconds - kinds.fixed.min()
  fits = problem.seconds + kinds.fixed < seconds
  work = np.where(fits, problem.seconds * kinds.degree, np.inf)
  tokens = (kinds.tokens / kinds.degree).max()
  for d in sorted(kinds.blocks):
    large = ~fits[:, kinds.degree < d].any(1)
    devices = np.where(degree >= d, degree, 0).sum(1)
    if large.any():
      least = work[large][:, kinds.degree >= d].min(1).sum()
      may &= least <= devices * room * (1 + 1e-9)
      may &= problem.lengths[large].sum() <= devices * tokens
  return may


def _fluid(problem: Problem, seconds: float) -> np.ndarray:
  """Groups of each degree if all took their cheapest kind, f64[G].

  Counts the larger of the time (in groups that end after these seconds) and
  the memory that they need there, scaled to all devices.
  """
  kinds = problem.kinds
  room = np.maximum(seconds * (1 + 1e-9) - kinds.fixed, 1e-300)
  fits = problem.seconds <= room
  work = np.where(fits, problem.seconds * kinds.degree, np.inf)
  cheapest = work.argmin(1)
  everyone, size = np.arange(len(cheapest)), len(kinds.degree)
  time = problem.seconds[everyone, cheapest] / room[cheapest]
  tokens = problem.lengths / np.maximum(kinds.tokens, 1)[cheapest]
  groups = np.maximum(
    np.bincount(cheapest, time, size), np.bincount(cheapest, tokens, size)
  )
  return _scaled(problem, groups)


def _occupied(problem: Problem, seconds: float) -> np.ndarray:
  """Groups of each degree if what cannot be cut counts as such, f64[G].

  Every sequence takes the kind in which it occupies the fewest devices, where
  1 / floor(1 / x) of a group is occupied by what needs the share x of its time
  or memory: two of 0.4 fill a group.
  """
  kinds = problem.kinds
  room = np.maximum(seconds - kinds.fixed, 1e-300)
  tokens = np.maximum(kinds.tokens, 1)
  share = problem.lengths[:, None] / tokens
  share = np.maximum(share, problem.seconds / room)
  with np.errstate(divide="ignore"):
    occupied = np.where(share <= 1, 1 / np.floor(1 / share), np.inf)
  cheapest = (occupied * kinds.degree).argmin(1)
  everyone = np.arange(len(cheapest))
  groups = np.bincount(
    cheapest, occupied[everyone, cheapest], len(kinds.degree)
  )
  return _scaled(problem, groups)


def _scaled(problem: Problem, groups: np.ndarray) -> np.ndarray:
  """Groups f64[J] of each kind as groups f64[G] of each degree."""
  degree = problem.kinds.degree
  groups = groups * problem.num_devices / (groups @ degree)
  return np.array(
    [groups[degree == d].sum() for d in sorted(problem.kinds.blocks)]
  )
