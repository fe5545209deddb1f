"""Ways to divide the devices of a cluster into groups.

A *shape* counts the groups of each degree, i64[G]; a layout puts the groups of
a shape on aligned blocks of devices.  Shape legend: n layouts, P groups of the
layout with most, G degrees.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_het.seqpar.cost import Kinds

_ENUMERATE = 4096  # shapes; beyond, only those near a wish are made


class Layouts(NamedTuple):
  """Several: kind i64[n, P] and first device i64[n, P], -1: no group."""

  kind: np.ndarray
  first: np.ndarray


@functools.lru_cache(maxsize=64)
def _count(devices: int, degrees: tuple[int, ...]) -> int:
  """How many shapes there are."""
  ways = [1] + devices * [0]
  for d in degrees:
    for n in range(d, devices + 1):
      ways[n] += ways[n - d]
  return ways[devices]


@functools.lru_cache(maxsize=16)
def _all_shapes(devices: int, degrees: tuple[int, ...]) -> np.ndarray:
  """Every shape that uses all devices, i64[n, G].

  Args:
    devices: to be divided.
    degrees: powers of two, descending.
  """
  if len(degrees) == 1:
    whole = devices % degrees[0] == 0
    return np.full((int(whole), 1), devices // degrees[0], np.int64)
  parts = []
  for groups in range(devices // degrees[0] + 1):
    rest = _all_shapes(devices - groups * degrees[0], degrees[1:])
    parts.append(np.insert(rest, 0, groups, axis=1))
  return np.concatenate(parts)


def few_shapes(
  devices: int, degrees: Sequence[int], most: int
) -> np.ndarray | None:
  """Every shape that uses all devices, i64[n, G]; None if more than `most`.

  Args:
    devices: to be divided.
    degrees: powers of two, ascending.
  """
  descending = tuple(sorted(map(int, degrees), reverse=True))
  if _count(devices, descending) > most:
    return None
  return _all_shapes(devices, descending)[:, ::-1]


def widest(devices: int, degrees: Sequence[int]) -> np.ndarray:
  """The shape with all devices in groups of the largest degree, i64[1, G]."""
  shape = np.zeros((1, len(degrees)), np.int64)
  shape[0, -1] = devices // max(degrees)
  return shape


def shapes_near(
  devices: int, degrees: Sequence[int], wish: np.ndarray, most: int
) -> np.ndarray:
  """The shapes nearest to a wish, counting misplaced devices.

  Args:
    devices: to be divided.
    degrees: powers of two, ascending.
    wish: f64[G], groups of each degree, as fractions may be.
    most: how many shapes to return.

  Returns:
    i64[n, G] in the order of `degrees`, the nearest first.
  """
  weight = np.sort(degrees)[::-1]
  target = np.asarray(wish, np.float64)[::-1]
  shapes = few_shapes(devices, degrees, _ENUMERATE)
  if shapes is None:
    shapes = _around(devices, weight, target)
  else:
    shapes = shapes[:, ::-1]
  distance = np.abs((shapes - target) * weight).sum(1)
  return shapes[np.argsort(distance, kind="stable")[:most], ::-1]


def _around(devices: int, weight: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Shapes that round each count of the wish down, up, or one further.

  What rounding leaves over goes to the smallest degrees.
  """
  shapes, left = np.zeros((1, 0), np.int64), np.array([devices])
  for g, degree in enumerate(weight[:-1]):
    around = np.unique(
      np.clip(math.floor(target[g]) + np.array([-1, 0, 1, 2]), 0, None)
    )
    counts = np.minimum(around[None], left[:, None] // degree)  # [n, 4]
    shapes = np.concatenate(
      [
        np.repeat(shapes, around.size, axis=0),
        counts.reshape(-1, 1),
      ],
      axis=1,
    )
    left = (left[:, None] - counts * degree).ravel()
    # Counts that were cut short repeat; the nearest suffice for what follows.
    shapes, index = np.unique(shapes, axis=0, return_index=True)
    left = left[index]
    if len(shapes) > _ENUMERATE:
      distance = np.abs((shapes - target[: g + 1]) * weight[: g + 1]).sum(1)
      keep = np.argsort(distance, kind="stable")[:_ENUMERATE]
      shapes, left = shapes[keep], left[keep]
  whole = left % weight[-1] == 0
  last = left[whole] // weight[-1]
  return np.concatenate([shapes[whole], last[:, None]], axis=1)


def place(shapes: np.ndarray, kinds: Kinds, num_devices: int) -> Layouts:
  """Puts the groups of each shape on blocks, the largest first.

  Where devices differ, each shape is laid out twice: large groups on the
  fastest blocks that are free, and on the slowest.

  Args:
    shapes: i64[n, G], degrees ascending.
    kinds: of the cluster.
    num_devices: D.

  Returns:
    n layouts, or 2 n without repetitions.
  """
  degrees = sorted(kinds.blocks)
  width = int(shapes.sum(1).max())
  if all(np.ptp(kinds.blocks[d]) == 0 for d in degrees):
    return _place_alike(shapes, kinds, degrees, width)
  found: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
  for shape in shapes:
    for sign in (1, -1):
      kind, first = np.full((2, width), -1)
      free, at = np.ones(num_devices, bool), 0
      for d, groups in zip(degrees[::-1], shape[::-1], strict=True):
        unused = np.nonzero(free.reshape(-1, d)[:, 0])[0]
        rank = -sign * kinds.speed[kinds.blocks[d][unused]]
        taken = unused[np.argsort(rank, kind="stable")[:groups]]
        kind[at : at + groups] = kinds.blocks[d][taken]
        first[at : at + groups] = taken * d
        free.reshape(-1, d)[taken] = False
        at += groups
      found.setdefault(kind.tobytes(), (kind, first))
  kind, first = zip(*found.values(), strict=True)
  return Layouts(np.stack(kind), np.stack(first))


def _place_alike(shapes, kinds, degrees, width) -> Layouts:
  """One after another: blocks in order of size are aligned by themselves."""
  alike = np.array([kinds.blocks[d][0] for d in degrees[::-1]])
  falling = shapes[:, ::-1]
  kind = np.full((len(shapes), width), -1)
  exists = np.arange(width) < falling.sum(1, keepdims=True)
  kind[exists] = np.repeat(np.tile(alike, len(shapes)), falling.ravel())
  degree = np.where(kind >= 0, kinds.degree[kind], 0)
  first = np.cumsum(degree, axis=1) - degree
  return Layouts(kind, np.where(kind >= 0, first, -1))
