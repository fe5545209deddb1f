"""Partitioners that give each client few classes, without random proportions.

Names and rules follow flwr-datasets 0.6; see docs/data.md for the differences.
"""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.data._owners import NOBODY, by_class, check_labels, gather

MODES = ("random", "deterministic", "first-deterministic")


def pathological(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  num_classes_per_client: int,
  class_assignment_mode: str = "random",
  seed: int = 0,
) -> list[np.ndarray]:
  """Gives each client exactly `num_classes_per_client` classes.

  A class is dealt evenly among the clients that have it.  Examples of a class
  that no client has are left out.

  Args:
    labels: i[n], the class of each example.
    num_clients: N.
    num_classes_per_client: classes of each client.
    class_assignment_mode: "random": drawn without replacement;
      "deterministic": client i has classes i, i + 1, ... (mod K);
      "first-deterministic": class i mod K, the others at random.
    seed: of the NumPy generator.

  Returns:
    N disjoint index arrays.

  Raises:
    UserError: an unknown mode, more classes than there are, or a class with
      fewer examples than clients that have it.

  References:
    Li et al., Federated Learning on Non-IID Data Silos, 2021,
    arXiv:2102.02079.
  """
  labels = check_labels(labels, num_clients)
  if class_assignment_mode not in MODES:
    raise unknown("class_assignment_mode", class_assignment_mode, MODES)
  rng = np.random.default_rng(seed)
  rows, class_sizes = by_class(labels, rng)
  num_classes = class_sizes.size
  if not 1 <= num_classes_per_client <= num_classes:
    raise UserError(
      f"num_classes_per_client must be between 1 and {num_classes} (the "
      f"classes in the data), got {num_classes_per_client}"
    )
  client = np.arange(num_clients)[:, None]
  if class_assignment_mode == "deterministic":
    chosen = (client + np.arange(num_classes_per_client)) % num_classes
  else:
    lot = rng.random((num_clients, num_classes))
    if class_assignment_mode == "first-deterministic":
      lot[client, client % num_classes] = -1  # drawn first
    chosen = np.argsort(lot, axis=1)[:, :num_classes_per_client]

  owner = np.full(labels.size, NOBODY, np.int64)
  start = 0
  for k, size in enumerate(class_sizes):
    users = np.flatnonzero((chosen == k).any(axis=1))
    if users.size > size:
      raise UserError(
        f"label {np.unique(labels)[k]} has {size} examples but "
        f"{users.size} clients need some: use fewer clients, a smaller "
        "num_classes_per_client, or class_assignment_mode=deterministic"
      )
    if users.size:
      owner[rows[start : start + size]] = users[np.arange(size) % users.size]
    start += size
  return gather(owner, num_clients, rng)


def shard(
  labels: Sequence[int] | np.ndarray,
  num_clients: int,
  *,
  num_shards_per_client: int | None = None,
  shard_size: int | None = None,
  keep_incomplete_shard: bool = False,
  seed: int = 0,
) -> list[np.ndarray]:
  """Sorts by label, cuts into shards, and deals the shards at random.

  With `num_shards_per_client` alone a shard has
  floor(n / (N * num_shards_per_client)) examples; with `shard_size` alone all
  shards are dealt, and the first clients get one more where they don't divide.
  Rows outside the shards that are dealt are left out.

  Args:
    labels: i[n], the class of each example.
    num_clients: N.
    num_shards_per_client: shards of each client.
    shard_size: examples of a shard.
    keep_incomplete_shard: the last, smaller shard can be dealt too.
    seed: of the NumPy generator.

  Returns:
    N disjoint index arrays.

  Raises:
    UserError: neither or a non-positive number given, or too few examples.

  References:
    McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, AISTATS 2017, arXiv:1602.05629.
  """
  labels = check_labels(labels, num_clients)
  if num_shards_per_client is None and shard_size is None:
    raise UserError("shard needs num_shards_per_client, shard_size, or both")
  for name, value in (
    ("num_shards_per_client", num_shards_per_client),
    ("shard_size", shard_size),
  ):
    if value is not None and value < 1:
      raise UserError(f"{name} must be at least 1, got {value}")
  n = labels.size
  if shard_size is None:
    shard_size = n // (num_clients * num_shards_per_client)
    if not shard_size:
      raise UserError(
        f"{num_clients} clients x {num_shards_per_client} shards are more "
        f"than the {n} examples: use fewer clients or shards"
      )
  total = -(-n // shard_size)
  available = total if keep_incomplete_shard else n // shard_size
  if num_shards_per_client is None:
    dealt = available
  else:
    dealt = num_clients * num_shards_per_client
  if not num_clients <= dealt <= available:
    raise UserError(
      f"{n} examples make {available} shards of {shard_size}, "
      f"{max(num_clients, dealt)} are needed: use a smaller shard_size, fewer "
      "shards or fewer clients"
    )
  rng = np.random.default_rng(seed)
  rows, _ = by_class(labels, rng)
  shard_owner = np.full(total, NOBODY, np.int64)
  shard_owner[rng.permutation(available)[:dealt]] = np.sort(
    np.arange(dealt) % num_clients
  )
  owner = np.empty(n, np.int64)
  owner[rows] = shard_owner[np.arange(n) // shard_size]
  return gather(owner, num_clients, rng)
