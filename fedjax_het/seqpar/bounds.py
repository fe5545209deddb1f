r"""Lower bounds on the time of a step: no plan can be faster.

All relax one integer program to a linear one: a sequence may be cut into
fractions y_kj over kinds of groups, and groups may be fractional.  The rows
say, for every kind j whose groups have X_j seconds and Y_j micro-batches:

    sum_j y_kj = 1                          every sequence
    sum_k t_kj y_kj <= X_j                  time
    sum_k f(s_k / tokens_j) y_kj <= Y_j     memory, for three functions f

f(x) = x, and the dual feasible functions that count what cannot be cut: of
sequences above 1/2 a group holds one, of those above 1/3 two.  A group of kind
j occupies d_j devices, each at least as fast and as large as the kind says.  So
for every *class* c (all devices of at least some speed and memory) the groups
of the kinds within c occupy no more than its |c| devices; a homogeneous cluster
has one class.

One micro-batch, the fluid LP: for a time T let X_j = n_j (T - b_j), Y_j = n_j
and min theta with sum_{j in c} d_j n_j <= theta |c|; T is impossible if
theta(T) > 1.  (Here f also applies to the shares of time t_kj / (T - b_j).)

A laminar step: min Z with sum_{j in c} d_j (X_j + b_j Y_j) <= |c| Z.  A step
with barriers has M >= ceil(tokens / capacity) micro-batches, and each costs b:
min Z with sum d_j X_j <= |c| (Z - M b).  (The laminar bound holds for it too:
waiting saves no work.)

For fixed multipliers of the rows the dual is a sum over sequences of their
cheapest kind.  The solver only proposes multipliers; they are made feasible
and evaluated here, so the bounds hold whatever its tolerance.  theta(T) falls
with T: the root of the dual is a bound, the program at that root proposes
better multipliers (Newton's method, from below).

References:
  Fekete and Schepers, New classes of fast lower bounds for bin packing
  problems, Mathematical Programming 91, 2001 (dual feasible functions).
"""

import math

import numpy as np

from fedjax_het.seqpar import _relaxation as relaxation
from fedjax_het.seqpar.problem import Problem

_NEWTON = 6  # rounds at most; 3 usually do
_GAIN = 1e-4  # relative; what a round must gain to go on
_BISECTIONS = 24


def longest_bound(problem: Problem) -> float:
  """Seconds of the slowest sequence on its own, in its best group."""
  return float((problem.seconds + problem.kinds.fixed).min(1).max())


def work_bound(problem: Problem) -> float:
  """`micro_batch_bound` from the time rows alone: weaker, without a solver."""
  prices = problem.kinds.degree[None] / problem.num_devices
  rows = relaxation.distinct(problem)
  return _root(problem, rows, prices, longest_bound(problem))


def micro_batch_bound(problem: Problem) -> float:
  """Seconds that one micro-batch of all the sequences takes at least.

  Args:
    problem: its sequences are computed in one step.

  Returns:
    A valid lower bound; inf if their tokens exceed what all devices hold.
  """
  if problem.lengths.sum() > problem.capacity:
    return math.inf
  classes, degree = relaxation.classes(problem), problem.kinds.degree
  one_each = np.tile(-np.eye(len(degree)), (6, 1))
  groups = np.block(  # variables n_1 .. n_J, theta
    [
      [one_each, np.zeros((len(one_each), 1))],
      [classes.inside * degree, -classes.size[:, None]],
    ]
  )
  rows, bound = relaxation.distinct(problem), work_bound(problem)
  few = relaxation.coarse(rows)
  for _ in range(_NEWTON):
    # a little later: at the root itself a kind may be just out of reach
    shares = relaxation.timed_shares(problem, few, bound * (1 + 1e-5))
    found = relaxation.propose(few, shares, groups)
    if found is None:
      return bound
    # all devices together are worth 1, a group no more than its devices
    prices, value = found
    scale = value @ classes.size
    limit = degree * (value / scale @ classes.inside)
    prices = relaxation.capped(prices / scale, limit)
    better = _root(problem, rows, prices, bound)
    if better <= bound * (1 + _GAIN):
      return better
    bound = better
  return bound


def step_bound(problem: Problem, barrier: bool) -> float:
  """Seconds that a whole training step takes at least, however it is split.

  Args:
    problem: the batch.
    barrier: whether the plan's steps wait for all groups (`types.Plan`).
  """
  fixed, longest = problem.kinds.fixed, longest_bound(problem)
  alone = max(longest, _work(problem, fixed))
  if not barrier:
    return alone
  steps = -(-int(problem.lengths.sum()) // problem.capacity)
  least = float(fixed.min())
  work = _work(problem, np.zeros_like(fixed))
  return max(alone, (steps - 1) * least + max(longest, work + least))


def _work(problem: Problem, fixed: np.ndarray) -> float:
  """min Z with sum_{j in c} d_j (X_j + fixed_j Y_j) <= |c| Z."""
  classes, degree = relaxation.classes(problem), problem.kinds.degree
  one, occupied = -np.eye(len(degree)), classes.inside * degree
  groups = np.block(  # variables X_1 .. X_J, Y_1 .. Y_J, Z
    [
      [one, 0 * one, 0 * one[:, :1]],
      *[[0 * one, one, 0 * one[:, :1]]] * 3,
      [occupied, occupied * fixed, -classes.size[:, None]],
    ]
  )
  rows = relaxation.distinct(problem)
  few = relaxation.coarse(rows)
  shares = relaxation.step_shares(problem, few)
  found = relaxation.propose(few, shares, groups)
  if found is None:
    return 0.0
  prices, value = found
  scale = value @ classes.size
  limit = degree * (value / scale @ classes.inside)
  time = relaxation.capped(prices[:1] / scale, limit)
  memory = relaxation.capped(prices[1:] / scale, limit * fixed)
  shares = relaxation.step_shares(problem, rows)
  return relaxation.dual(rows, shares, np.concatenate([time, memory]))


def _root(problem: Problem, rows, prices: np.ndarray, low: float) -> float:
  """The time up to which the dual exceeds 1; at least `low`."""

  def impossible(time):
    shares = relaxation.timed_shares(
      problem, rows, time, only_time=len(prices) == 1
    )
    return relaxation.dual(rows, shares, prices) > 1

  if not impossible(low):
    return low
  high = 2 * low
  while impossible(high):
    low, high = high, 2 * high
  for _ in range(_BISECTIONS):
    middle = (low + high) / 2
    if impossible(middle):
      low = middle
    else:
      high = middle
  return low
