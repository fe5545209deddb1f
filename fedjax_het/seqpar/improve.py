"""Local search: moves and swaps sequences between groups.

The time of a plan with barriers is the sum over its steps of their slowest
groups.  Each turn takes the slowest group of a step and gives away one of its
sequences: to a group of the same step that then still ends before the slowest
did, or to a group of another step that has time and memory to spare.  If no
move helps, it swaps two sequences likewise.  A step is never made slower.
"""

import numpy as np

from fedjax_het.seqpar.problem import Problem

_LESS = 1 - 1e-6  # what counts as faster
_PARTNERS = 128  # groups, those with most time to spare, that are looked at


def improve(
  problem: Problem,
  kind: np.ndarray,
  step: np.ndarray,
  group: np.ndarray,
  *,
  bound: float = 0.0,
  most: int = 200,
) -> tuple[np.ndarray, np.ndarray]:
  """Moves and swaps until nothing helps.

  Args:
    problem: the sequences.
    kind, step: i64[P], of each group; steps 0 .. M - 1 have groups.
    group: i64[S], a feasible assignment; left as it is.
    bound: a step this fast is left alone.
    most: turns.

  Returns:
    (seconds of each step f64[M], the assignment i64[S]).
  """
  search = _Search(problem, kind, step, group)
  done, turn = search.ends <= bound, 0
  for _ in range(most):
    if done.all():
      break
    while done[turn]:
      turn = (turn + 1) % len(done)
    touched = search.turn(turn)
    if touched:
      done[:] = search.ends <= bound
    else:
      done[turn] = True
    turn = (turn + 1) % len(done)
  return search.ends, search.group


class _Search:
  """The groups' loads, kept up to date."""

  def __init__(self, problem: Problem, kind, step, group):
    self.step, self.group = step, group.astype(np.int64)
    self.length = problem.lengths.astype(float)
    self.seconds, self.kind = problem.seconds, kind
    self.own = self.seconds[np.arange(len(group)), kind[self.group]]
    self.limit = problem.kinds.tokens[kind].astype(float)
    size = len(kind)
    self.load = problem.kinds.fixed[kind] + np.bincount(
      self.group, self.own, size
    )
    self.used = np.bincount(self.group, self.length, size)
    self.count = np.bincount(self.group, minlength=size)
    self.ends = np.zeros(step.max() + 1)
    for m in range(len(self.ends)):
      self._measure(m)

  def _measure(self, m: int) -> None:
    busy = (self.step == m) & (self.count > 0)
    self.ends[m] = self.load[busy].max(initial=0.0)

  def turn(self, m: int) -> bool:
    """One move or swap out of the slowest group of step m, if one helps."""
    here = self.step == m
    p = int(np.where(here & (self.count > 0), self.load, -1.0).argmax())
    # no group may end later than this
    latest = np.where(here, self.load[p] * _LESS, self.ends[self.step])
    spare = latest - self.load
    spare[p] = -np.inf
    near = np.argsort(-spare, kind="stable")[:_PARTNERS]
    near = near[near != p]
    mine = np.nonzero(self.group == p)[0]
    rest = (self.load[p] - self.own[mine])[:, None]  # p without it
    changes = self._move(mine, rest, near, here, latest)
    if not changes:
      changes = self._swap(p, mine, rest, near, here, latest)
    for k, goal in changes:
      source = self.group[k]
      self.load[source] -= self.own[k]
      self.used[source] -= self.length[k]
      self.count[source] -= 1
      self.group[k], self.own[k] = goal, self.seconds[k, self.kind[goal]]
      self.load[goal] += self.own[k]
      self.used[goal] += self.length[k]
      self.count[goal] += 1
    for other in {m, *(int(self.step[goal]) for _, goal in changes)}:
      self._measure(other)
    return bool(changes)

  def _move(self, mine, rest, near, here, latest):
    """[(sequence, its new group)] of the best move, or []."""
    if not near.size:
      return []
    ends = self.load[near] + self.seconds[np.ix_(mine, self.kind[near])]
    may = ends <= latest[near]
    may &= self.used[near] + self.length[mine, None] <= self.limit[near]
    after = np.where(here[near], np.maximum(ends, rest), rest)
    after = np.where(may, after, np.inf)
    best = int(after.argmin())
    if not np.isfinite(after.flat[best]):
      return []
    i, q = divmod(best, near.size)
    return [(mine[i], near[q])]

  def _swap(self, p, mine, rest, near, here, latest):
    """[(sequence, new group), (its partner, p)] of the best swap, or []."""
    partner = np.zeros(len(latest), bool)
    partner[near] = True
    others = np.nonzero(partner[self.group])[0]
    if not others.size:
      return []
    q = self.group[others]
    mine_ends = rest + self.seconds[others, self.kind[p]]
    ends = self.seconds[np.ix_(mine, self.kind[q])]
    ends = ends + (self.load[q] - self.own[others])
    longer = self.length[mine, None] - self.length[others]
    may = (mine_ends <= self.load[p] * _LESS) & (ends <= latest[q])
    may &= self.used[p] - longer <= self.limit[p]
    may &= self.used[q] + longer <= self.limit[q]
    after = np.where(here[q], np.maximum(ends, mine_ends), mine_ends)
    after = np.where(may, after, np.inf)
    best = int(after.argmin())
    if not np.isfinite(after.flat[best]):
      return []
    i, j = divmod(best, others.size)
    return [(mine[i], q[j]), (others[j], p)]
