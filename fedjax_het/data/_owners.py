"""What the partitioners share: argument checks, and rows gathered by owner.

A partitioner only decides `owner` i64[n], the client that holds each example
(`NOBODY` for an example left out).  Disjointness then needs no proof: one
example has one owner.
"""

import math
from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError

NOBODY = -1


def check_labels(
  labels: Sequence[int] | np.ndarray, num_clients: int, *, min_size: int = 1
) -> np.ndarray:
  """Returns the labels i64[n] if `num_clients` can get `min_size` rows each.

  Raises:
    UserError: labels that are not a list of integers, or too few of them.
  """
  array = np.asarray(labels)
  if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
    raise UserError(
      f"labels must be integers [n], got {array.dtype} {list(array.shape)}"
    )
  if num_clients < 1:
    raise UserError(f"num_clients must be at least 1, got {num_clients}")
  if min_size < 1:
    raise UserError(f"min_size must be at least 1, got {min_size}")
  if num_clients * min_size > array.size:
    raise UserError(
      f"{num_clients} clients with at least {min_size} examples each need "
      f"{num_clients * min_size} examples, the data have {array.size}: use "
      "fewer clients or a smaller min_size"
    )
  return array.astype(np.int64)


def check_sizes(
  sizes: Sequence[int] | np.ndarray, num_examples: int
) -> np.ndarray:
  """Returns the sizes i64[N] of all clients if there are enough examples."""
  array = np.asarray(sizes)
  if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
    raise UserError("sizes must be a non-empty list of integers, one a client")
  small = np.flatnonzero(array < 1)
  if small.size:
    raise UserError(
      f"client {small[0]} would hold {array[small[0]]} examples: every size "
      "must be at least 1"
    )
  if int(array.sum()) > num_examples:
    raise UserError(
      f"sizes add up to {int(array.sum())}, the data have {num_examples} "
      "examples: use smaller sizes or fewer clients"
    )
  return array.astype(np.int64)


def check_positive(name: str, value: float) -> None:
  """Raises `UserError` unless `value` is a positive finite number."""
  if not (math.isfinite(value) and value > 0):
    raise UserError(f"{name} must be a positive number, got {value}")


def by_class(
  labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Rows ordered by class, at random inside a class, and the class sizes.

  Returns:
    rows i64[n]; sizes i64[K] of the classes that occur, in label order.
  """
  rows = rng.permutation(labels.size)
  rows = rows[np.argsort(labels[rows], kind="stable")]
  return rows, np.unique(labels, return_counts=True)[1]


def gather(
  owner: np.ndarray, num_clients: int, rng: np.random.Generator | None
) -> list[np.ndarray]:
  """Each client's rows, in random order (`rng` None: in ascending order).

  Random, because a consumer that takes the first rows of a client would
  otherwise take one class of a data set that is stored by class.

  Raises:
    UserError: a client holds nothing.
  """
  rows = np.arange(owner.size) if rng is None else rng.permutation(owner.size)
  rows = rows[owner[rows] != NOBODY]
  held = owner[rows]
  counts = np.bincount(held, minlength=num_clients)
  empty = np.flatnonzero(counts == 0)
  if empty.size:
    raise UserError(
      f"the partition leaves {empty.size} of {num_clients} clients empty "
      f"(first: client {empty[0]}): use fewer clients"
    )
  order = np.argsort(held, kind="stable")
  return np.split(rows[order], np.cumsum(counts)[:-1])
