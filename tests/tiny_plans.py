"""Exhaustive search on clusters of four alike devices, written from scratch.

Nothing here uses the planners' code: the times are the published formula, the
groups are spelt out.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from fedjax_het.seqpar.cost import ModelCost
from fedjax_het.seqpar.types import Cluster


class Tiny(NamedTuple):
  """seconds(s, d) = (a1 s^2 + a2 s) / d + exchange[d] s / d, b more each."""

  a1: float = 0.01
  a2: float = 0.5
  b: float = 2.0
  exchange: tuple[tuple[int, float], ...] = ((1, 0.0), (2, 0.1), (4, 0.4))
  capacity: int = 10  # tokens a device

  def seconds(self, s: int, d: int) -> float:
    slope = dict(self.exchange)[d]
    return (self.a1 * s * s + self.a2 * s) / d + slope * s / d

  def cluster(self) -> Cluster:
    # 8 bytes are exchanged per token and device: 2 passes x 1 layer x 4 wide
    bandwidth = {d: 8.0 / slope for d, slope in self.exchange if d > 1}
    return Cluster(np.ones(4), np.full(4, self.capacity * 7.0), 4, bandwidth)

  def model(self) -> ModelCost:
    return ModelCost(
      quadratic=self.a1,
      linear=self.a2,
      fixed=self.b,
      token_bytes=7.0,
      parameters=0.0,
      layers=1,
      hidden=1,
      element_bytes=1,
      zero=0,
    )


GROUPS = ((4,), (2, 2), (2, 1, 1), (1, 1, 1, 1))


def best_barrier(lengths: tuple[int, ...], tiny: Tiny) -> float:
  """The fastest plan with barriers: every split, shape and assignment."""
  n = len(lengths)
  every = range(1 << n)
  part = [[lengths[i] for i in range(n) if m >> i & 1] for m in every]
  time = {
    d: [
      math.inf
      if sum(p) > d * tiny.capacity
      else tiny.b * bool(p) + sum(tiny.seconds(s, d) for s in p)
      for p in part
    ]
    for d in (1, 2, 4)
  }

  @functools.cache
  def step(mask: int, groups: tuple[int, ...]) -> float:
    """One micro-batch of `mask` on these groups."""
    if len(groups) == 1:
      return time[groups[0]][mask]
    best, own = math.inf, mask
    while True:  # all subsets of mask
      best = min(best, max(time[groups[0]][own], step(mask ^ own, groups[1:])))
      if not own:
        return best
      own = (own - 1) & mask

  @functools.cache
  def plan(mask: int) -> float:
    if not mask:
      return 0.0
    best, own = math.inf, mask
    lowest = mask & -mask
    while own:
      if own & lowest:
        first = min(step(own, groups) for groups in GROUPS)
        best = min(best, first + plan(mask ^ own))
      own = (own - 1) & mask
    return best

  return plan((1 << n) - 1)


def best_laminar(lengths: tuple[int, ...], tiny: Tiny) -> float:
  """The fastest laminar plan: every assignment to the seven blocks."""
  n = len(lengths)
  parts = [
    [lengths[i] for i in range(n) if mask >> i & 1] for mask in range(1 << n)
  ]
  load = {d: np.array([_load(p, d, tiny) for p in parts]) for d in (1, 2, 4)}
  where = _assignments(n)
  bit = 1 << np.arange(n)
  own = [  # of the blocks 0-3, 0-1, 2-3, 0, 1, 2, 3
    load[d][((where == block) * bit).sum(1)]
    for block, d in enumerate((4, 2, 2, 1, 1, 1, 1))
  ]
  left = own[1] + np.maximum(own[3], own[4])
  right = own[2] + np.maximum(own[5], own[6])
  return float((own[0] + np.maximum(left, right)).min())


@functools.cache
def _assignments(n: int) -> np.ndarray:
  return np.array(list(itertools.product(range(7), repeat=n)))


def _load(items: list[int], d: int, tiny: Tiny) -> float:
  """Seconds of a block of d for the items, in as few micro-batches as hold."""
  count = _bins(items, d, tiny)
  if math.isinf(count):
    return math.inf
  return tiny.b * count + sum(tiny.seconds(s, d) for s in items)


def _bins(items: list[int], d: int, tiny: Tiny) -> float:
  """Fewest micro-batches of a group of d that hold the items."""
  size = d * tiny.capacity
  if any(s > size for s in items):
    return math.inf
  for count in range(len(items) + 1):
    for where in itertools.product(range(count), repeat=len(items)):
      filled = [0] * count
      for s, w in zip(items, where, strict=True):
        filled[w] += s
      if all(f <= size for f in filled):
        return count
  raise AssertionError("one bin an item always holds")
