"""FlexSP's planner: a mixed-integer program for each micro-batch.

For virtual groups p of every degree d_p (D / d_p of each, fewer where long
sequences claim devices) and buckets k of similar lengths, each counted as its
longest length s_k:

    min M   over A_kp (how many of bucket k in p, whole), m_p in {0, 1}
    sum_p A_kp = size_k                     every sequence
    sum_k s_k A_kp <= tokens_p              memory
    sum_k t_kp A_kp + b <= M                time
    m_p <= sum_k A_kp <= S m_p              m_p: p is used
    sum_p d_p m_p <= D                      devices

The batch is split by the blaster into M_min .. M_min + more_steps
micro-batches; the real sequences are then taken from the buckets at random.
The best plan with one degree is the start and the limit of the search.

Departures: HiGHS instead of SCIP; SciPy gives it no starting solution, so the
start is a bound on M and what is returned if nothing better is found in time;
sum d m <= D instead of =; groups of one degree are used in order.

References:
  Wang et al., FlexSP, 2025, arXiv:2412.01523; solver.py of
  github.com/PKU-DAIR/Hetu-Galvatron (branch flexsp).
"""

import math

import numpy as np
from scipy.sparse import coo_array

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import _highs, assign, split
from fedjax_het.seqpar.microbatch import Packed
from fedjax_het.seqpar.problem import Problem
from fedjax_het.seqpar.types import Task


def milp(
  problem: Problem,
  *,
  seed: int = 0,
  time_limit: float = 10.0,
  buckets: int = 16,
  more_steps: int = 2,
) -> tuple[list[Task], dict[str, float]]:
  """Plans a step with barriers.

  Args:
    problem: the batch; all devices must be alike.
    seed: which of a bucket's sequences go where.
    time_limit: seconds for each micro-batch.
    buckets: of lengths, more where they would waste too much.
    more_steps: micro-batches beyond the fewest (FlexSP: 4).

  Returns:
    (tasks, details of the plan that was kept: "micro_batches" solved over all
    splits, "proven" optimal of the plan's own, and the sums over the plan's
    own of "dual_bound" and "relaxation" in seconds; these two are bounds for
    bucketed lengths, not for the real ones).

  Raises:
    UserError: if devices differ in speed or memory.
  """
  if len(problem.kinds.degree) > len(problem.kinds.blocks):
    raise UserError(
      "milp needs devices that are alike: use shapes, tree or auto"
    )
  rng = np.random.default_rng(seed)
  fewest = split.fewest_steps(problem.lengths, problem.capacity)
  best, tasks, details, solved = math.inf, [], {}, 0
  for steps in range(fewest, len(problem.lengths) + 1):
    if tasks and steps > fewest + more_steps:
      break
    parts = split.blaster(problem.lengths, steps)
    found = []
    for part in parts:
      found.append(_micro_batch(problem.part(part), buckets, time_limit, rng))
      solved += 1
      if not math.isfinite(found[-1][0].seconds):
        break
    total = sum(packed.seconds for packed, _ in found)
    if total < best:
      best, tasks = total, []
      for step, (part, (packed, _)) in enumerate(
        zip(parts, found, strict=True)
      ):
        tasks += packed.tasks(step, part, problem.kinds.degree)
      details = {
        "proven": float(sum(s.proven for _, s in found)),
        "dual_bound": sum(s.bound for _, s in found),
        "relaxation": sum(s.relaxed for _, s in found),
      }
  return tasks, {**details, "micro_batches": float(solved)}


def _micro_batch(
  problem: Problem, buckets: int, time_limit: float, rng
) -> tuple[Packed, _highs.Solution]:
  """Solves one micro-batch."""
  bucket = _buckets(problem, buckets)
  # each bucket as its longest sequence: rows of the tables
  longest = np.array([b[problem.lengths[b].argmax()] for b in bucket])
  size = np.array([len(b) for b in bucket])
  counted = problem.part(np.repeat(longest, size))
  start = _one_degree(counted)
  kind = _virtual_groups(problem, longest, size)
  limit = start.seconds * (1 + 1e-6)  # the solver's tolerance is absolute
  program = _program(problem, longest, size, kind, limit)
  found = _highs.solve(program, time_limit)
  pools = [list(rng.permutation(b)) for b in bucket]
  group = np.zeros(len(problem.lengths), np.int64)
  if found.x is not None:
    count = np.rint(found.x[: size.size * kind.size]).astype(int)
    count = count.reshape(size.size, kind.size)
  elif math.isfinite(start.seconds):
    kind = start.kind
    row = np.repeat(np.arange(size.size), size)
    count = np.zeros((size.size, kind.size), int)
    np.add.at(count, (row, start.group), 1)
  else:
    return start, found
  for k, g in zip(*np.nonzero(count), strict=True):
    for _ in range(count[k, g]):
      group[pools[k].pop()] = g
  return _packed(problem, kind, group), found


def _buckets(problem: Problem, count: int) -> list[np.ndarray]:
  """FlexSP's rule: more buckets until half of the free memory is not wasted."""
  s = problem.lengths
  limit = (s.sum() + problem.capacity) / 2
  while True:
    found = split.buckets(s, count)
    if count >= len(s) or sum(s[b].max() * len(b) for b in found) <= limit:
      return found
    count += 1


def _one_degree(problem: Problem) -> Packed:
  """The best packing with groups of one degree."""
  kinds, n = problem.kinds, problem.num_devices
  best = Packed(math.inf, np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))
  for j, degree in enumerate(kinds.degree):
    kind = np.full((1, n // degree), j)
    dealt = assign.earliest(problem, kind)
    if dealt.seconds[0] < best.seconds:
      first = np.arange(n // degree) * degree
      best = Packed(dealt.seconds[0], kind[0], first, dealt.group[:, 0])
  return best


def _virtual_groups(problem: Problem, longest, size) -> np.ndarray:
  """Kinds of the groups that may be used, i64[P], ascending."""
  kinds, n = problem.kinds, problem.num_devices
  need = kinds.degree[np.isfinite(problem.seconds[longest]).argmax(1)]
  largest = need.max()
  claimed = largest * size[need == largest].sum()
  copies = [
    max(n - claimed, 0) // d if d < largest else n // d for d in kinds.degree
  ]
  return np.repeat(np.arange(len(kinds.degree)), copies)


def _program(problem: Problem, longest, size, kind, limit) -> _highs.Program:
  """The program; variables A (bucket by bucket), m, M."""
  kinds, k, p = problem.kinds, size.size, kind.size
  seconds = problem.seconds[longest][:, kind]
  fits = np.isfinite(seconds)
  tokens, degree = kinds.tokens[kind].astype(float), kinds.degree[kind]
  a = np.arange(k * p).reshape(k, p)  # columns of A
  m, last = k * p + np.arange(p), k * p + p
  rows, low, high = [], [], []

  def add(columns, values, least, most):
    """Rows with these columns [r, c] and values."""
    columns, values = np.broadcast_arrays(columns, values)
    rows.append((columns, values.astype(float)))
    low.append(np.broadcast_to(least, len(columns)))
    high.append(np.broadcast_to(most, len(columns)))

  add(a, 1.0, size, size)
  length = np.broadcast_to(problem.lengths[longest], (p, k))
  add(a.T, length, -np.inf, tokens)
  time = np.column_stack([np.where(fits, seconds, 0.0).T, np.full(p, -1.0)])
  add(
    np.column_stack([a.T, np.full(p, last)]), time, -np.inf, -kinds.fixed[kind]
  )
  used = np.column_stack([a.T, m])
  add(used, np.append(np.ones(k), -float(size.sum())), -np.inf, 0.0)
  add(used, np.append(np.ones(k), -1.0), 0.0, np.inf)
  add(m[None], degree[None], -np.inf, float(problem.num_devices))
  same = np.nonzero(kind[1:] == kind[:-1])[0]
  if same.size:
    pairs = np.column_stack([m[same], m[same + 1]])
    add(pairs, np.array([1.0, -1.0]), 0.0, np.inf)
  sizes = [c.shape for c, _ in rows]
  starts = np.cumsum([0, *(n for n, _ in sizes)])
  matrix = coo_array(
    (
      np.concatenate([v.ravel() for _, v in rows]),
      (
        np.concatenate(
          [
            np.repeat(np.arange(n) + at, width)
            for at, (n, width) in zip(starts, sizes, strict=False)
          ]
        ),
        np.concatenate([c.ravel() for c, _ in rows]),
      ),
    ),
    shape=(int(starts[-1]), last + 1),
  )
  most = np.where(fits, size[:, None], 0).ravel()
  return _highs.Program(
    cost=(np.arange(last + 1) == last).astype(float),
    matrix=matrix.tocsc(),
    row_low=np.concatenate(low),
    row_high=np.concatenate(high),
    high=np.concatenate([most, np.ones(p), [limit]]),
    whole=np.arange(last + 1) < last,
  )


def _packed(problem: Problem, kind: np.ndarray, group: np.ndarray) -> Packed:
  """Puts the groups that are used on devices, the largest first."""
  used = np.unique(group)
  used = used[np.argsort(-problem.kinds.degree[kind[used]], kind="stable")]
  degree = problem.kinds.degree[kind[used]]
  place = np.zeros(kind.size, np.int64)
  place[used] = np.arange(used.size)
  own = problem.seconds[np.arange(group.size), kind[group]]
  load = np.bincount(place[group], own, used.size)
  seconds = float((load + problem.kinds.fixed[kind[used]]).max())
  return Packed(seconds, kind[used], np.cumsum(degree) - degree, place[group])
