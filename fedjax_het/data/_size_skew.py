"""Partitioners that make clients differ in size, or that follow given ids.

Names and rules follow flwr-datasets 0.6; see docs/data.md for the differences.
"""

import math
from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.data._owners import (
  NOBODY,
  check_labels,
  check_sizes,
  gather,
)

GROUP_MODES = ("allow-smaller", "allow-bigger", "drop-reminder", "strict")


def iid(
  labels: Sequence[int] | np.ndarray, num_clients: int, *, seed: int = 0
) -> list[np.ndarray]:
  """Deals all examples at random; sizes differ by one at most.

  Args:
    labels: i[n], only their number matters.
    num_clients: N.
    seed: of the NumPy generator.

  Returns:
    N index arrays that hold each of the n rows once.

  Raises:
    UserError: more clients than examples.
  """
  labels = check_labels(labels, num_clients)
  rng = np.random.default_rng(seed)
  owner = rng.permutation(np.arange(labels.size) % num_clients)
  return gather(owner, num_clients, rng)


def size(
  labels: Sequence[int] | np.ndarray,
  sizes: Sequence[int] | np.ndarray,
  *,
  seed: int = 0,
) -> list[np.ndarray]:
  """Deals random examples to clients of given sizes; the rest is left out.

  Args:
    labels: i[n], only their number matters.
    sizes: i[N], examples of each client; their sum is at most n.
    seed: of the NumPy generator.

  Returns:
    N disjoint index arrays of the given sizes.

  Raises:
    UserError: a size < 1, or more places than examples.
  """
  labels = check_labels(labels, 1)
  sizes = check_sizes(sizes, labels.size)
  rng = np.random.default_rng(seed)
  owner = np.full(labels.size, NOBODY, np.int64)
  owner[: sizes.sum()] = np.repeat(np.arange(sizes.size), sizes)
  return gather(rng.permutation(owner), sizes.size, rng)


def _by_weight(labels, weights, min_size, seed):
  """Sizes floor(n w_i / sum w), the remainder to the last client.

  Clients whose share is below `min_size` get `min_size`, and the others share
  the rest in proportion.
  """
  labels = check_labels(labels, weights.size, min_size=min_size)
  free = np.ones(weights.size, bool)
  while True:
    rest = labels.size - min_size * np.count_nonzero(~free)
    share = weights / weights[free].sum() * rest
    low = free & (share < min_size)
    if not low.any():
      break
    free &= ~low
  sizes = np.where(free, share, min_size).astype(np.int64)
  sizes[-1] += labels.size - sizes.sum()
  return size(labels, sizes, seed=seed)


def _ids(num_clients):
  if num_clients < 1:
    raise UserError(f"num_clients must be at least 1, got {num_clients}")
  return np.arange(1, num_clients + 1, dtype=np.float64)


def linear(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  seed: int = 0,
  min_size: int = 2,
) -> list[np.ndarray]:
  """Random examples, as many as in proportion to the client's number 1..N.

  Args:
    labels: i[n], only their number matters.
    num_clients: N.
    seed: of the NumPy generator.
    min_size: the fewest examples of a client (2: one to train, one to test).

  Returns:
    N index arrays that hold each of the n rows once.

  Raises:
    UserError: fewer than N * min_size examples.
  """
  return _by_weight(labels, _ids(num_clients), min_size, seed)


def square(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  seed: int = 0,
  min_size: int = 2,
) -> list[np.ndarray]:
  """As `linear`, in proportion to the square of the client's number."""
  return _by_weight(labels, _ids(num_clients) ** 2, min_size, seed)


def exponential(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  growth: float = math.e,
  seed: int = 0,
  min_size: int = 2,
) -> list[np.ndarray]:
  """As `linear`, each client `growth` times as large as the one before.

  The default, e, is flwr-datasets' rule and only sensible for some ten
  clients: with many, all but the last few hold `min_size`.
  """
  if not (math.isfinite(growth) and growth > 1):
    raise UserError(f"growth must be a number above 1, got {growth}")
  # Relative to the last client: growth ** 1000 is no float.
  exponent = (_ids(num_clients) - num_clients) * math.log(growth)
  return _by_weight(labels, np.exp(exponent), min_size, seed)


def _check_ids(ids):
  array = np.asarray(ids)
  if array.ndim != 1 or not array.size:
    raise UserError(
      f"ids must be a non-empty list, one an example, got {list(array.shape)}"
    )
  unique, code = np.unique(array, return_inverse=True)
  return unique.size, code


def natural_id(ids: Sequence | np.ndarray) -> list[np.ndarray]:
  """One client for each distinct id (a writer, a device, a hospital).

  Args:
    ids: [n], who each example belongs to; integers or strings.

  Returns:
    One index array for each id, in the sorted order of the ids; rows keep the
    order they have in the data.

  Raises:
    UserError: ids that are not a non-empty list.
  """
  num_clients, code = _check_ids(ids)
  return gather(code, num_clients, None)


def grouped_natural_id(
  ids: Sequence | np.ndarray, group_size: int, mode: str = "allow-smaller"
) -> list[np.ndarray]:
  """One client for each `group_size` ids: organisations instead of users.

  Args:
    ids: [n], who each example belongs to; grouped in their sorted order.
    group_size: ids in a group.
    mode: what to do with the u mod group_size ids that are left over:
      "allow-smaller": the last group is smaller; "allow-bigger": the first
      groups get one more each, as evenly as can be; "drop-reminder": leave
      them out; "strict": refuse.

  Returns:
    One index array for each group; rows keep the order they have in the data.

  Raises:
    UserError: an unknown mode, a group larger than the number of ids (but for
      "allow-smaller"), or left over ids in "strict" mode.
  """
  if mode not in GROUP_MODES:
    raise unknown("mode", mode, GROUP_MODES)
  num_ids, code = _check_ids(ids)
  if group_size < 1:
    raise UserError(f"group_size must be at least 1, got {group_size}")
  whole, left = divmod(num_ids, group_size)
  if not whole and mode != "allow-smaller":
    raise UserError(
      f"group_size {group_size} is more than the {num_ids} ids: use a smaller "
      "one, or mode=allow-smaller"
    )
  if mode == "strict" and left:
    raise UserError(
      f"{num_ids} ids don't divide into groups of {group_size} ({left} left): "
      "use another group_size or mode"
    )
  group = np.arange(num_ids) // group_size
  if mode == "allow-bigger":
    group = np.sort(np.arange(num_ids) % whole)
  elif mode == "drop-reminder":
    group[whole * group_size :] = NOBODY
  return gather(group[code], int(group.max()) + 1, None)
