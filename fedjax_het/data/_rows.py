"""Rows of clients: from lists to padded arrays, and back to owners."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import FederatedData, Rows
from fedjax_het.data._owners import NOBODY


def flatten(
  parts: Sequence[np.ndarray], num_examples: int
) -> tuple[np.ndarray, np.ndarray]:
  """All rows and the client of each, checked: i64[m], i64[m].

  Raises:
    UserError: names the first client that has no rows, a row twice or a row
      that doesn't exist.
  """
  arrays = [np.asarray(part) for part in parts]
  if not arrays:
    raise UserError("the partition has no clients")
  for k, array in enumerate(arrays):
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
      raise UserError(
        f"client {k}: rows must be a list of integers, got {array.dtype} "
        f"{list(array.shape)}"
      )
    if not array.size:
      raise UserError(
        f"client {k} holds 0 examples, it needs 1 to train and 1 to test: use "
        "fewer clients or a larger min_size"
      )
  rows = np.concatenate(arrays).astype(np.int64)
  client = np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
  wrong = np.flatnonzero((rows < 0) | (rows >= num_examples))
  if wrong.size:
    raise UserError(
      f"client {client[wrong[0]]} holds row {rows[wrong[0]]}, the data have "
      f"rows 0 to {num_examples - 1}"
    )
  cell = np.sort(client * num_examples + rows)
  twice = np.flatnonzero(cell[1:] == cell[:-1])
  if twice.size:  # it could be trained on and tested on
    k, row = divmod(int(cell[twice[0]]), num_examples)
    raise UserError(f"client {k} holds row {row} twice: list each row once")
  return rows, client


def pad(
  rows: np.ndarray,
  client: np.ndarray,
  num_clients: int,
  width: int | None = None,
) -> Rows:
  """Rows of each client, padded with 0 to the longest: [m] -> [N, R].

  Args:
    rows: i64[m], the rows of client 0, then of client 1, ...
    client: i64[m], in ascending order.
    num_clients: N.
    width: R, if it must be more than the longest.
  """
  counts = np.bincount(client, minlength=num_clients)
  place = np.arange(rows.size) - (np.cumsum(counts) - counts)[client]
  index = np.zeros((num_clients, width or counts.max()), np.int32)
  index[client, place] = rows
  return Rows(jnp.asarray(index), jnp.asarray(counts, jnp.int32))


def unpad(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
  """The real rows and the client of each, the reverse of `pad`."""
  index, count = np.asarray(rows.index), np.asarray(rows.count)
  client, place = np.nonzero(np.arange(index.shape[1]) < count[:, None])
  return index[client, place].astype(np.int64), client


def owners(data: FederatedData) -> np.ndarray:
  """The client that holds each example, in its train or its test rows.

  Args:
    data: the federated data set.

  Returns:
    i64[n], `NOBODY` for an example that nobody holds.

  Raises:
    UserError: two clients hold the same example.
  """
  owner = np.full(data.examples.y.shape[0], NOBODY)
  held = [unpad(rows) for rows in (data.train, data.test)]
  rows, client = (np.concatenate(part) for part in zip(*held, strict=True))
  owner[rows] = client
  other = np.flatnonzero(owner[rows] != client)
  if other.size:
    row = rows[other[0]]
    raise UserError(
      f"clients {client[other[0]]} and {owner[row]} both hold row {row}: a "
      "view or a concept of one client needs clients that share no rows"
    )
  return owner
