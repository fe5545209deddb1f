"""One slot of a drift: which code an example has, which rows a client holds."""

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Rows
from fedjax_het.data._groups import HELDOUT, heldout_codes
from fedjax_het.data._owners import NOBODY
from fedjax_het.data._schedule import Schedule, table


def check_schedule(what, given, shape, num_codes) -> Schedule:
  """A schedule of this shape, with codes below num_codes."""
  if given is None:
    given = np.zeros(shape, np.int64)
  schedule = given if isinstance(given, Schedule) else table(given)
  if schedule.code.shape != shape:
    raise UserError(
      f"the schedule of the {what} is {list(schedule.code.shape)}, there are "
      f"[slots, clients] = {list(shape)}"
    )
  top = max(schedule.code.max(), schedule.before.max())
  if top >= num_codes:
    raise UserError(
      f"the schedule names {what} {top}, there are {what}s 0 to {num_codes - 1}"
    )
  return schedule


def parts_of(part, shape):
  """Whose part each client holds: i64[T, N], rows that are permutations."""
  everybody = np.arange(shape[1])
  if part is None:
    return np.tile(everybody, (shape[0], 1))
  code = check_schedule("part", part, shape, shape[1]).code
  if (np.sort(code, axis=1) != everybody).any():
    raise UserError(
      "each slot must give each part to one client: part[t] must be a "
      "permutation of the clients"
    )
  return code


def turns(owner, seed):
  """When an example changes in a gradual drift: f64[n], spread over (0, 1).

  Of c examples with one owner, the one with turn (r + 1/2) / c is the r-th.
  """
  order = np.random.default_rng([seed, 9]).permutation(owner.size)
  order = order[np.argsort(owner[order], kind="stable")]
  counts = np.bincount(owner + 1)  # NOBODY first
  start = np.cumsum(counts) - counts
  group = owner[order] + 1
  turn = np.empty(owner.size)
  turn[order] = (np.arange(owner.size) - start[group] + 0.5) / counts[group]
  return turn


def codes_now(schedule, slot, client, turn):
  """What each example has in this slot: i64[n], -1 if nobody holds it."""
  code, share, before = (part[slot][client] for part in schedule)
  return np.where(client == NOBODY, -1, np.where(turn < share, code, before))


def judges(held, mode, num_views, num_concepts, num_clients, seed):
  """Held-out x and y, and how to show them: codes, or "now" (client, turn)."""
  x, y = held
  rng = np.random.default_rng([seed, 10])
  if mode == "now":
    client = rng.permutation(np.arange(y.size) % num_clients)
    return x, y, (client, turns(client, seed))
  if mode not in HELDOUT:
    raise unknown("way to treat held-out data", mode, [*HELDOUT, "now"])
  rows, pair = heldout_codes(mode, y.size, num_views * num_concepts, rng)
  codes = np.where(pair < 0, -1, divmod(pair, num_concepts))
  return x[rows], y[rows], tuple(codes)


def check_pieces(rows, pieces):
  for (_, count), what in zip(rows, ("train", "test"), strict=True):
    if count.min() < pieces:
      raise UserError(
        f"client {count.argmin()} has {count.min()} {what} rows, which cannot "
        f"be cut into {pieces} fresh slots: use fewer slots, larger clients or "
        "fresh=False"
      )


def take_piece(index, count, piece, pieces, part):
  """Piece number `piece` of each part's rows, by the client that has it."""
  size = count // pieces
  place = np.arange(size.max())
  column = np.minimum(piece * size[:, None] + place, index.shape[1] - 1)
  rows = np.take_along_axis(index, column, axis=1)
  rows = np.where(place < size[:, None], rows, 0)
  return Rows(jnp.asarray(rows[part]), jnp.asarray(size[part], jnp.int32))
