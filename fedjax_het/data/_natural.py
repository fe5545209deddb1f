"""From pieces of people's data to clients, and to those who are held out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import FederatedData
from fedjax_het.data.federated import from_rows
from fedjax_het.data.sources import Dataset

Heldout = float | Sequence[str]  # a share of the people, or their names


class Natural(NamedTuple):
  """A federated data set whose clients have names.

  data: client k is clients[k];  x f32, or i32 tokens.
  clients: N names, sorted.   heldout: who judges the global model.
  classes: K names of labels.
  source, licence: where it came from and on what terms.
  """

  data: FederatedData
  clients: tuple[str, ...]
  heldout: tuple[str, ...]
  classes: tuple[str, ...]
  source: str
  licence: str


class Piece(NamedTuple):
  """Windows of one client that train or test together."""

  person: str
  client: str
  test: bool
  x: np.ndarray
  y: np.ndarray


def check_fraction(test_fraction: float) -> None:
  """Raises `UserError` unless the fraction is between 0 and 1."""
  if not 0 < test_fraction < 1:
    raise UserError(
      f"test_fraction must be between 0 and 1, got {test_fraction}"
    )


def choose(names, heldout, seed, what) -> set[str]:
  """The people that are held out: a share of them, or those named."""
  if isinstance(heldout, (int, float)):
    count = max(1, round(heldout * len(names)))
    if not 0 < heldout < 1 or count >= len(names):
      raise UserError(
        f"heldout must be a share of the {len(names)} names, between 0 and 1, "
        f"that leaves one over, or a list of names; got {heldout}"
      )
    drawn = np.random.default_rng([seed, 11]).permutation(len(names))[:count]
    return {names[k] for k in drawn}
  wanted = {heldout} if isinstance(heldout, str) else set(heldout)
  for name in sorted(wanted - set(names)):
    raise unknown(what, name, names)
  if not wanted or len(wanted) == len(names):
    raise UserError("heldout must name one at least, and not all of them")
  return wanted


def deal(pieces, judges, classes, *, name, source, licence) -> Natural:
  """Rows of clients from pieces, each of which trains, tests or judges."""
  held = [p for p in pieces if p.person in judges]
  kept = [p for p in pieces if p.person not in judges]
  clients = sorted({piece.client for piece in kept})
  number = {client: k for k, client in enumerate(clients)}
  rows = [[[] for _ in clients] for _ in range(2)]
  start = 0
  for piece in kept:
    stop = start + len(piece.y)
    rows[piece.test][number[piece.client]].append(np.arange(start, stop))
    start = stop
  for part, what in zip(rows, ("train", "test"), strict=True):
    for client, mine in zip(clients, part, strict=True):
      if not sum(map(len, mine)):
        raise UserError(
          f"{name}: {client} has no {what} examples: hold it out, or use "
          "another test_fraction"
        )
  train, test = ([np.concatenate(mine) for mine in part] for part in rows)
  (x, y), (held_x, held_y) = (
    (
      np.concatenate([piece.x for piece in part]),
      np.concatenate([piece.y for piece in part]),
    )
    for part in (kept, held)
  )
  dataset = Dataset(x, y, held_x, held_y, len(classes), name, source, licence)
  return Natural(
    from_rows(dataset, train, test),
    tuple(clients),
    tuple(sorted(judges)),
    classes,
    source,
    licence,
  )
