"""Streams that drift by nature, cut into time slots and dealt to clients.

Example:
  >>> rng = np.random.default_rng(0)
  >>> stream = Stream(rng.normal(size=(1000, 3)), np.arange(1000) % 2, "toy")
  >>> story = deal(stream, num_clients=5, num_slots=4)
  >>> story.at(3).train.index.shape
  (5, 35)
"""

import io
import os
import tarfile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import NO_BUDGET, Examples, FederatedData, Rows
from fedjax_het.data import _packed
from fedjax_het.data.drift import Drift

FILE = "drift_streams.tar.gz"
SHA256 = "63e9f1d617abdf5e7468ae60d04ec1be1f75086eda195a0e1065cb02ed58418f"
DEALS = ("mixed", "blocks")

MEMBERS = {"elec2": "elec.csv", "noaa": "weather.csv", "sea": "sea_stream.csv"}


class Stream(NamedTuple):
  """Labelled examples in the order of time.

  x: f[n, d], not normalised.   y: i[n].   name: for messages.
  """

  x: np.ndarray
  y: np.ndarray
  name: str


def load(name: str, data_dir: str | os.PathLike | None = None) -> Stream:
  """A stream from drift_streams.tar.gz.

  "elec2", 45,312 half hours of the electricity market of New South Wales, does
  the price go up? (6 features); "noaa", 18,159 days of weather in Bellevue,
  Nebraska, does it rain? (8 features); "sea", 40,000 draws of the SEA
  generator (3 features), in which nothing drifts: y = [x1 + x2 > 9] and 10 %
  noise all the time.  Source: scikit-multiflow/streaming-datasets on GitHub,
  on the terms of its references (Harries 1999; Elwell and Polikar 2011).

  Args:
    name: "elec2", "noaa" or "sea".
    data_dir: the folder of the file, or the file; then $FEDJAX_HET_DATA.

  Returns:
    The stream.

  Raises:
    UserError: an unknown name, or no such file, or another content.
  """
  if name not in MEMBERS:
    raise unknown("stream", name, MEMBERS)
  path = _packed.find(FILE, SHA256, data_dir)
  with tarfile.open(path) as archive:
    text = archive.extractfile(f"./{MEMBERS[name]}").read()
  return read_csv(io.BytesIO(text), name)


def read_csv(file, name: str) -> Stream:
  """A stream from a CSV file: a line of names, then numbers, the label last.

  Args:
    file: a path, or an open file.
    name: for messages.

  Returns:
    The stream.

  Raises:
    UserError: no such table, or labels that are not 0, 1, 2, ...
  """
  try:
    table = np.loadtxt(file, delimiter=",", skiprows=1, ndmin=2)
  except ValueError as error:
    raise UserError(f"{name} is not a table of numbers: {error}") from error
  x, y = table[:, :-1], table[:, -1]
  if not np.isfinite(table).all() or (y % 1).any() or y.min() < 0:
    raise UserError(
      f"{name}: numbers must be finite, and labels (the last column) 0, 1, "
      "2, ..."
    )
  return Stream(x, y.astype(np.int64), name)


def deal(
  stream: Stream,
  *,
  num_clients: int,
  num_slots: int,
  how: str = "mixed",
  test_fraction: float = 0.2,
  heldout_fraction: float = 0.1,
  seed: int = 0,
) -> Drift:
  """Cuts a stream into slots and deals each slot to the clients.

  Every client gets m = floor(n / (N T)) rows in each slot (what is left over at
  the end of a span is dropped).  In the order of time, the first of them train,
  the next ones test the client and the last ones are held out.

  Args:
    stream: n rows.
    num_clients: N.
    num_slots: T.
    how: "mixed": slot t is the t-th of T spans of the stream, and its rows are
      dealt at random, so that all clients live at the same time.  "blocks":
      client k has the k-th of N spans, and slot t is the t-th part of that, so
      that clients live at different times: they differ as well as drift.
    test_fraction, heldout_fraction: of m, at least 1 row each.
    seed: of the "mixed" deal.

  Returns:
    The drift.  Nobody knows the truth about it: `real`, `virtual`, `label`,
    `view` and `concept` are None.  Features are normalised by the mean and
    standard deviation of the training rows of slot 0.

  Raises:
    UserError: too few rows, or an unknown way to deal.
  """
  if how not in DEALS:
    raise unknown("way to deal a stream", how, DEALS)
  n, size = stream.y.size, stream.y.size // (num_clients * num_slots)
  num_test = max(1, round(test_fraction * size))
  num_held = max(1, round(heldout_fraction * size))
  num_train = size - num_test - num_held
  if num_train < 1:
    raise UserError(
      f"{n} rows of {stream.name} for {num_clients} clients in {num_slots} "
      f"slots are {size} each, which leaves {num_train} to train on: use fewer "
      "clients or slots, or smaller fractions"
    )
  if how == "mixed":
    rng = np.random.default_rng(seed)
    span = n // num_slots
    cells = np.stack(
      [t * span + rng.permutation(span) for t in range(num_slots)]
    )[:, : num_clients * size]
    cells = np.sort(cells.reshape(num_slots, num_clients, size), axis=-1)
  else:
    start = n // num_clients * np.arange(num_clients)[:, None]
    cells = start + np.arange(num_slots * size)
    cells = cells.reshape(num_clients, num_slots, size).swapaxes(0, 1)
  train, test, held = np.split(
    cells.astype(np.int32), [num_train, num_train + num_test], axis=-1
  )
  first = stream.x[train[0].ravel()]
  std = first.std(axis=0)
  x = (stream.x - first.mean(axis=0)) / np.where(std > 0, std, 1)
  examples = Examples(
    jnp.asarray(x, jnp.float32), jnp.asarray(stream.y, jnp.int32)
  )

  def rows(index):
    count = jnp.full(num_clients, index.shape[-1], jnp.int32)
    return Rows(jnp.asarray(index), count)

  def at(slot):
    if not 0 <= slot < num_slots:
      raise UserError(f"slot {slot}: there are slots 0 to {num_slots - 1}")
    judges = jnp.asarray(held[slot].ravel())
    return FederatedData(
      examples=examples,
      train=rows(train[slot]),
      test=rows(test[slot]),
      heldout=Examples(examples.x[judges], examples.y[judges]),
      budget=jnp.full(num_clients, NO_BUDGET),
    )

  def heldout(view, concept):
    del view, concept
    raise UserError(
      f"nobody knows the views and concepts of {stream.name}: use "
      "at(slot).heldout"
    )

  return Drift(
    num_slots=num_slots,
    at=at,
    concept=None,
    view=None,
    real=None,
    virtual=None,
    label=None,
    views=(),
    concepts=(),
    heldout=heldout,
  )
