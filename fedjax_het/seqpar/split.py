"""Cuts a batch into micro-batches, and lengths into buckets.

Both cut a sorted list into runs of neighbours, as FlexSP does.
"""

import numpy as np


def blaster(lengths: np.ndarray, steps: int) -> list[np.ndarray]:
  """Splits into runs of sorted lengths so that the fullest is smallest.

  Sequences of one micro-batch are then alike, so that its groups end
  together.  The optimum of FlexSP's dynamic program, by bisection on the
  tokens of the fullest run.

  Args:
    lengths: i64[S].
    steps: M, how many micro-batches, 1 <= M <= S.

  Returns:
    M arrays of positions, each from the longest sequence to the shortest;
    none is empty.

  Raises:
    ValueError: for more micro-batches than sequences, or none.

  References:
    Wang et al., FlexSP, 2025, arXiv:2412.01523 (sequence blaster).
  """
  if not 1 <= steps <= len(lengths):
    raise ValueError(f"{len(lengths)} sequences into {steps} micro-batches")
  order = np.argsort(-lengths, kind="stable")
  total = np.concatenate([[0], np.cumsum(lengths[order])])
  low, high = int(lengths.max()), int(total[-1])
  while low < high:
    middle = (low + high) // 2
    if _count(total, middle) <= steps:
      high = middle
    else:
      low = middle + 1
  cuts = [0]
  while cuts[-1] < len(order):
    # no further than leaves one sequence for each micro-batch to come
    reach = np.searchsorted(total, total[cuts[-1]] + low, "right") - 1
    cuts.append(min(int(reach), len(order) - max(steps - len(cuts), 0)))
  return [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def _count(total: np.ndarray, most: int) -> int:
  """How many runs of at most `most` tokens a greedy pass needs."""
  runs, at = 0, 0
  while at < len(total) - 1:
    at = int(np.searchsorted(total, total[at] + most, "right")) - 1
    runs += 1
  return runs


def fewest_steps(lengths: np.ndarray, capacity: int) -> int:
  """M: the fewest micro-batches of the blaster that the devices can hold.

  Args:
    lengths: i64[S], none above `capacity`.
    capacity: tokens that all devices hold together.
  """
  steps = -(-int(lengths.sum()) // capacity)
  while max(int(lengths[p].sum()) for p in blaster(lengths, steps)) > capacity:
    steps += 1
  return steps


def buckets(lengths: np.ndarray, count: int) -> list[np.ndarray]:
  """Groups similar lengths, each bucket to be counted as its longest one.

  Minimises sum (longest of the bucket - length) exactly, in O(count S^2).

  Args:
    lengths: i64[S].
    count: of buckets; fewer come back if there are fewer sequences.

  Returns:
    Arrays of positions, from the shortest lengths to the longest.

  References:
    Wang et al., FlexSP, 2025, arXiv:2412.01523 (sequence bucketing).
  """
  order = np.argsort(lengths, kind="stable")
  s = lengths[order].astype(np.float64)
  n, count = len(s), min(count, len(s))
  total = np.concatenate([[0.0], np.cumsum(s)])
  start, end = np.arange(n)[:, None], np.arange(1, n + 1)[None]
  # waste[i, e - 1] of the bucket s[i:e]
  waste = s[None] * (end - start) - (total[end] - total[start])
  waste = np.where(start < end, waste, np.inf)
  best = waste[0]  # of s[:e] in one bucket
  choices = []
  for _ in range(1, count):
    # s[:i] in the buckets so far, s[i:e] in one more
    before = np.concatenate([[np.inf], best[:-1]])[:, None] + waste
    choices.append(before.argmin(0))
    best = before.min(0)
  cuts = [n]
  for choice in reversed(choices):
    cuts.append(int(choice[cuts[-1] - 1]))
  cuts = [0, *reversed(cuts)]
  return [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False) if a < b]
