"""Deals sequences to groups, for many layouts of one micro-batch at once.

Shape legend: S sequences, n candidates (a layout, perhaps with a target time),
P groups of a layout.
"""

from typing import NamedTuple

import numpy as np

from fedjax_het.seqpar.problem import Problem


class Dealt(NamedTuple):
  """seconds: f64[n], of the slowest group; inf where something did not fit.

  group: i32[S, n], the group of each sequence.
  """

  seconds: np.ndarray
  group: np.ndarray


def _state(problem: Problem, kind: np.ndarray):
  """Load f64[n, P] and room f64[n, P] of empty groups, -1 where no group."""
  exists = kind >= 0
  known = np.where(exists, kind, 0)
  load = problem.kinds.fixed[known].astype(float)
  room = np.where(exists, problem.kinds.tokens[known], -1).astype(float)
  return known, load, room


def earliest(problem: Problem, kind: np.ndarray) -> Dealt:
  """Longest first, each to the group that then ends first (if it has room).

  Args:
    problem: the micro-batch.
    kind: i64[n, P], layouts.
  """
  known, load, room = _state(problem, kind)
  n = np.arange(len(kind))
  group = np.zeros((len(problem.lengths), len(kind)), np.int32)
  last, fits = np.zeros(len(kind)), np.ones(len(kind), bool)
  for k in np.argsort(-problem.lengths, kind="stable"):
    ends = load + problem.seconds[k][known]
    ends[room < problem.lengths[k]] = np.inf
    g = ends.argmin(1)
    end = ends[n, g]
    fits &= np.isfinite(end)
    load[n, g] = end
    room[n, g] -= problem.lengths[k]
    group[k] = g
    np.maximum(last, end, out=last)
    if not fits.any():
      break
  return Dealt(np.where(fits, last, np.inf), group)


def tightest(problem: Problem, kind: np.ndarray, target: np.ndarray) -> Dealt:
  """Longest first, each to the cheapest group that ends by the target time.

  Cheapest in device-seconds; of those that are equal the fullest.

  Args:
    problem: the micro-batch.
    kind: i64[n, P], layouts.
    target: f64[n], seconds that no group may exceed.
  """
  known, load, room = _state(problem, kind)
  holds = np.maximum(room, 1.0)
  degree = problem.kinds.degree[known]
  n = np.arange(len(kind))
  group = np.zeros((len(problem.lengths), len(kind)), np.int32)
  last, fits = np.zeros(len(kind)), np.ones(len(kind), bool)
  scale = problem.num_devices * target[:, None]
  for k in np.argsort(-problem.lengths, kind="stable"):
    added = problem.seconds[k][known]
    ends = load + added
    key = added * degree / scale + 1e-6 * room / holds
    key[(room < problem.lengths[k]) | (ends > target[:, None])] = np.inf
    g = key.argmin(1)
    end = ends[n, g]
    fits &= np.isfinite(key[n, g])
    load[n, g] = end
    room[n, g] -= problem.lengths[k]
    group[k] = g
    np.maximum(last, end, out=last)
    if not fits.any():
      break
  return Dealt(np.where(fits, last, np.inf), group)
