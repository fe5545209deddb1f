"""The linear relaxation behind `bounds`: shares, multipliers, dual values.

Shape legend: R distinct lengths, J kinds of groups, C classes of devices,
m measures.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from fedjax_het.seqpar.problem import Problem

_LP_ROWS = 128  # lengths that the program tells apart; the dual sees them all


class Rows(NamedTuple):
  """Sequences with multiplicities: lengths f64[R], count f64[R], seconds."""

  lengths: np.ndarray
  count: np.ndarray
  seconds: np.ndarray


class Shares(NamedTuple):
  """fits: bool[R, J].  each: m arrays f64[R, J], what a sequence takes."""

  fits: np.ndarray
  each: list[np.ndarray]


class Classes(NamedTuple):
  """inside: bool[C, J], kinds of a class.  size: f64[C], its devices."""

  inside: np.ndarray
  size: np.ndarray


def distinct(problem: Problem) -> Rows:
  """The batch with equal lengths counted."""
  lengths, first, count = np.unique(
    problem.lengths, return_index=True, return_counts=True
  )
  return Rows(
    lengths.astype(float), count.astype(float), problem.seconds[first]
  )


def coarse(rows: Rows) -> Rows:
  """At most `_LP_ROWS` rows: neighbours in length merged into their mean."""
  if len(rows.count) <= _LP_ROWS:
    return rows
  bucket = np.arange(len(rows.count)) * _LP_ROWS // len(rows.count)
  count = np.bincount(bucket, rows.count)
  weight = rows.count / count[bucket]
  start = np.searchsorted(bucket, np.arange(_LP_ROWS))
  return Rows(
    np.bincount(bucket, rows.lengths * weight),
    count,
    np.add.reduceat(rows.seconds * weight[:, None], start),
  )


def classes(problem: Problem) -> Classes:
  """For each kind, the devices at least as fast and as large as its slowest."""
  kinds = problem.kinds
  finest, each = min(kinds.blocks), kinds.tokens / kinds.degree
  pairs = np.unique(np.stack([kinds.speed, each], 1), axis=0)
  inside = (kinds.speed >= pairs[:, :1]) & (each >= pairs[:, 1:])
  size = inside[:, kinds.blocks[finest]].sum(1) * float(finest)
  return Classes(inside[size > 0], size[size > 0])


def timed_shares(
  problem: Problem, rows: Rows, time: float, *, only_time: bool = False
) -> Shares:
  """Of a group that has `time` seconds: its share, then two more, then three
  of memory."""
  room = np.maximum(time - problem.kinds.fixed, 1e-300)
  share = rows.seconds / room
  fits = share <= 1
  share = np.where(fits, share, 1.0)
  if only_time:
    return Shares(fits, [share])
  return Shares(fits, [share, *_whole(share), *_memory(problem, rows)])


def step_shares(problem: Problem, rows: Rows) -> Shares:
  """Seconds, and three of memory."""
  fits = np.isfinite(rows.seconds)
  seconds = np.where(fits, rows.seconds, 0.0)
  return Shares(fits, [seconds, *_memory(problem, rows)])


def _memory(problem: Problem, rows: Rows) -> list[np.ndarray]:
  tokens = np.maximum(problem.kinds.tokens, 1)
  share = np.minimum(rows.lengths[:, None] / tokens, 1.0)
  return [share, *_whole(share)]


def _whole(share: np.ndarray) -> list[np.ndarray]:
  """1 above 1/2; and 1/2 above 1/3, 1 above 2/3 (dual feasible functions)."""
  share = share * (1 - 1e-9)  # two of exactly 1/2 fit, whatever the rounding
  return [np.floor(2 * share), np.floor(3 * share) / 2]


def propose(
  rows: Rows, shares: Shares, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
  """Multipliers of: min the last group variable, all sequences dealt.

  Args:
    rows, shares: the sequences and their m measures.
    groups: f64[m J + C, variables]; rows (measure, kind) say that the measure
      summed over sequences, plus groups @ variables, is <= 0; the last C rows
      have no sequences in them.

  Returns:
    (prices f64[m, J], multipliers f64[C] >= 0), or None if the solver found no
    multipliers.
  """
  k, j = np.nonzero(shares.fits)
  kinds, measures = shares.fits.shape[1], len(shares.each)
  width = k.size + groups.shape[1]
  row, column = np.nonzero(groups)
  a = coo_array(
    (
      np.concatenate([*(m[k, j] for m in shares.each), groups[row, column]]),
      (
        np.concatenate([*(m * kinds + j for m in range(measures)), row]),
        np.concatenate([np.tile(np.arange(k.size), measures), k.size + column]),
      ),
    ),
    shape=(len(groups), width),
  )
  cover = coo_array(
    (np.ones(k.size), (k, np.arange(k.size))), shape=(len(rows.count), width)
  )
  found = linprog(
    np.arange(width) == width - 1,
    A_ub=a.tocsr(),
    b_ub=np.zeros(len(groups)),
    A_eq=cover.tocsr(),
    b_eq=rows.count,
    method="highs",
  )
  if found.status != 0:
    return None
  value = np.maximum(-found.ineqlin.marginals, 0)
  prices, rest = np.split(value, [measures * kinds])
  return (prices.reshape(measures, kinds), rest) if rest.any() else None


def capped(prices: np.ndarray, limit: np.ndarray) -> np.ndarray:
  """Prices f64[m, J] scaled down where their sum exceeds the limit f64[J]."""
  total = prices.sum(0)
  return prices * np.where(total > limit, limit / np.maximum(total, 1e-300), 1)


def dual(rows: Rows, shares: Shares, prices: np.ndarray) -> float:
  """What all sequences pay, each in the kind that is cheapest for it."""
  cost = sum(p * m for p, m in zip(prices, shares.each, strict=True))
  return float(rows.count @ np.where(shares.fits, cost, np.inf).min(1))
