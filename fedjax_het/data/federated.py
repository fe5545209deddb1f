"""From arrays and a partition to `FederatedData` on the device.

Each client's rows are split once, at random, into its own train and test rows.
Everything is vectorised over rows: 1,000 clients cost as much as 10.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import NO_BUDGET, Examples, FederatedData
from fedjax_het.data._rows import flatten, pad, unpad
from fedjax_het.data.partition import natural_id
from fedjax_het.data.sources import Dataset

SPLITS = ("both", "train", "test")


def federate(
  dataset: Dataset,
  parts: Sequence[np.ndarray],
  *,
  test_fraction: float = 0.2,
  seed: int = 0,
  budget: int | Sequence[int] | np.ndarray | None = None,
) -> FederatedData:
  """Deals a data set to clients and puts it on the device.

  A client with c examples tests on round(test_fraction * c) of them, but on 1
  at least and c - 1 at most.  The data set's own test set is held by nobody:
  it judges the global model.

  Args:
    dataset: from `sources.load`; i32 `train_x` are tokens and stay so, all
      else becomes f32.
    parts: for each client, its rows of `dataset.train_x`, i[n_i]; at least 2.
      Clients may share rows.
    test_fraction: between 0 and 1, exclusive.
    seed: of the train/test split.
    budget: the most local steps of a client in a round: one number, i[N], or
      None for no limit.

  Returns:
    The federated data set.

  Raises:
    UserError: names the first client that has fewer than 2 rows, a row twice
      or a row that doesn't exist; or a bad test_fraction or budget.
  """
  rows, client = flatten(parts, len(dataset.train_x))
  counts = np.bincount(client)
  small = np.flatnonzero(counts < 2)
  if small.size:
    raise UserError(
      f"client {small[0]} holds {counts[small[0]]} examples, it needs 1 to "
      "train and 1 to test: use fewer clients or a larger min_size"
    )
  if not 0 < test_fraction < 1:
    raise UserError(
      f"test_fraction must be between 0 and 1, got {test_fraction}"
    )
  num_test = np.rint(test_fraction * counts).astype(np.int64)
  num_test = np.clip(num_test, 1, counts - 1)

  order = np.random.default_rng(seed).permutation(rows.size)
  order = order[np.argsort(client[order], kind="stable")]
  rows, client = rows[order], client[order]
  start = np.cumsum(counts) - counts
  first = np.arange(rows.size) - start[client] < num_test[client]
  return _dealt(
    dataset,
    pad(rows[~first], client[~first], counts.size),
    pad(rows[first], client[first], counts.size),
    budget,
  )


def from_rows(
  dataset: Dataset,
  train: Sequence[np.ndarray],
  test: Sequence[np.ndarray],
  *,
  budget: int | Sequence[int] | np.ndarray | None = None,
) -> FederatedData:
  """Deals a data set whose train and test rows are decided already.

  For data that must not be split at random, e.g. overlapping windows of a time
  series: a random split would test on what was trained on.

  Args:
    dataset: i32 `train_x` are tokens and stay so, all else becomes f32.
    train, test: for each client, its rows of `dataset.train_x`, 1 or more;
      together no row twice.  Clients may share rows.
    budget: as in `federate`.

  Returns:
    The federated data set.

  Raises:
    UserError: lists of different lengths, a client without rows, a row twice
      or a row that doesn't exist; or a bad budget.
  """
  if len(train) != len(test):
    raise UserError(
      f"train rows of {len(train)} clients and test rows of {len(test)}: give "
      "one list of rows a client in both"
    )
  size = len(dataset.train_x)
  rows = [pad(*flatten(part, size), len(part)) for part in (train, test)]
  # a row to train on must not be tested on
  flatten([np.append(a, b) for a, b in zip(train, test, strict=True)], size)
  return _dealt(dataset, *rows, budget)


def from_arrays(
  x: np.ndarray,
  y: np.ndarray,
  client_ids: Sequence | np.ndarray,
  *,
  heldout: tuple[np.ndarray, np.ndarray] | None = None,
  heldout_fraction: float = 0.1,
  test_fraction: float = 0.2,
  seed: int = 0,
  budget: int | Sequence[int] | np.ndarray | None = None,
  tokens: bool = False,
) -> FederatedData:
  """Your own arrays, with a client id for each example.

  Args:
    x: [n, ...], turned into f32; not normalised.  With `tokens`, i32.
    y: i[n], labels >= 0.
    client_ids: [n], integers or strings; clients come in sorted order.
    heldout: (x, y) that no client holds, to judge the global model.  None
      takes floor(heldout_fraction * n_i) random rows from each client instead.
    heldout_fraction: between 0 and 1, exclusive; used without `heldout`.
    test_fraction: as in `federate`, of what is left to the client.
    seed: of both random choices.
    budget: as in `federate`.
    tokens: x holds token ids >= 0, for a model that begins with an embedding.

  Returns:
    The federated data set.

  Raises:
    UserError: arrays that don't fit together, values that are not finite,
      labels below 0, clients too small (see `federate`).

  Example:
    >>> x, y = np.zeros((30, 4)), np.arange(30) % 3
    >>> data = from_arrays(x, y, np.repeat(["ann", "bob"], 15))
    >>> data.num_clients, data.heldout.y.shape
    (2, (2,))
  """
  x, y = _checked(x, y, "", tokens)
  if np.shape(client_ids) != y.shape:
    raise UserError(
      f"client_ids must hold one id for each of the {y.size} examples, got "
      f"shape {list(np.shape(client_ids))}"
    )
  parts = natural_id(client_ids)
  if heldout is None:
    if not 0 < heldout_fraction < 1:
      raise UserError(
        f"heldout_fraction must be between 0 and 1, got {heldout_fraction}"
      )
    rng = np.random.default_rng([seed, 1])  # not the stream of the split
    parts = [rng.permutation(part) for part in parts]
    taken = [int(heldout_fraction * part.size) for part in parts]
    pairs = list(zip(parts, taken, strict=True))
    held = np.concatenate([part[:count] for part, count in pairs])
    if not held.size:
      raise UserError(
        f"heldout_fraction {heldout_fraction} of such small clients is no "
        "example at all: give heldout=(x, y) or a larger fraction"
      )
    parts = [part[count:] for part, count in pairs]
    heldout = (x[held], y[held])
  held_x, held_y = _checked(*heldout, "heldout ", tokens)
  if held_x.shape[1:] != x.shape[1:]:
    raise UserError(
      f"heldout examples have shape {list(held_x.shape[1:])}, the others "
      f"{list(x.shape[1:])}"
    )
  num_classes = int(max(y.max(), held_y.max())) + 1
  dataset = Dataset(
    x, y, held_x, held_y, num_classes, "arrays", "given", "yours"
  )
  return federate(
    dataset, parts, test_fraction=test_fraction, seed=seed, budget=budget
  )


def label_counts(data: FederatedData, split: str = "both") -> np.ndarray:
  """How many examples of each class each client holds.

  Args:
    data: the federated data set.
    split: "train" or "test" rows, or "both".

  Returns:
    i64[N, K] with K = the largest label (held out ones included) + 1.

  Raises:
    UserError: an unknown split.
  """
  if split not in SPLITS:
    raise unknown("split", split, SPLITS)
  labels = np.asarray(data.examples.y)
  num_classes = int(max(labels.max(), np.asarray(data.heldout.y).max())) + 1
  total = np.zeros(data.num_clients * num_classes, np.int64)
  for name, rows in (("train", data.train), ("test", data.test)):
    if split in (name, "both"):
      row, client = unpad(rows)
      cell = client * num_classes + labels[row]
      total += np.bincount(cell, minlength=total.size)
  return total.reshape(data.num_clients, num_classes)


def _dealt(dataset, train, test, budget):
  return FederatedData(
    examples=_examples(dataset.train_x, dataset.train_y),
    train=train,
    test=test,
    heldout=_examples(dataset.test_x, dataset.test_y),
    budget=_budget(budget, train.count.shape[0]),
  )


def _examples(x, y):
  dtype = jnp.int32 if x.dtype == np.int32 else jnp.float32
  return Examples(jnp.asarray(x, dtype), jnp.asarray(y, jnp.int32))


def _budget(budget, num_clients):
  array = np.asarray(NO_BUDGET if budget is None else budget)
  if (
    array.dtype.kind not in "iu"
    or array.shape not in ((), (num_clients,))
    or array.min() < 0
    or array.max() > NO_BUDGET
  ):
    raise UserError(
      "budget must be one whole number of steps >= 0 or one for each of the "
      f"{num_clients} clients, got {array.dtype} {list(array.shape)}"
    )
  return jnp.asarray(np.broadcast_to(array, num_clients), jnp.int32)


def _checked(x, y, what, tokens):
  """Arrays as f32[n, ...] (tokens: i32) and i32[n]."""
  x, y = np.asarray(x), np.asarray(y)
  if y.ndim != 1 or not y.size or x.shape[:1] != y.shape or x.ndim < 2:
    raise UserError(
      f"{what}x must be [n, ...] and {what}y [n] with n >= 1, got "
      f"{list(x.shape)} and {list(y.shape)}"
    )
  if y.dtype.kind not in "iu" or y.min() < 0:
    raise UserError(f"{what}y must be labels 0, 1, 2, ..., got {y.dtype}")
  if x.dtype.kind not in "fiub" or not np.isfinite(x).all():
    raise UserError(
      f"{what}x must be finite numbers, got {x.dtype}"
      + (" with NaN or Inf in it" if x.dtype.kind == "f" else "")
    )
  if tokens and (x.dtype.kind not in "iu" or x.min() < 0):
    raise UserError(
      f"{what}x must be token ids 0, 1, 2, ..., got {x.dtype}: leave out "
      "tokens=True if they are features"
    )
  return x.astype(np.int32 if tokens else np.float32), y.astype(np.int32)
