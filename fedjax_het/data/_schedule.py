"""Schedules: which view or concept each client has in each time slot.

A schedule is a table [T, N] of numbers: positions in a list of views or
concepts.  The builders give the usual kinds of onset; any other table will do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_het.core.errors import UserError


class Schedule(NamedTuple):
  """What each client has in each slot.

  code: i64[T, N], what the client has, or is moving to.
  share: f64[T, N] in (0, 1], the share of its examples that have it.
  before: i64[T, N], what the others have (`code` where the share is 1).
  """

  code: np.ndarray
  share: np.ndarray
  before: np.ndarray

  @property
  def changed(self) -> np.ndarray:
    """bool[T, N]: the client's mixture differs from the slot before."""
    different = np.zeros(self.code.shape, bool)
    for part in self:
      different[1:] |= part[1:] != part[:-1]
    return different


def table(code: np.ndarray) -> Schedule:
  """Any table i[T, N]; every change is sudden and whole."""
  code = np.asarray(code)
  if code.ndim != 2 or not code.size or code.dtype.kind not in "iu":
    raise UserError(
      f"a schedule is a table [slots, clients] of numbers, got {code.dtype} "
      f"{list(code.shape)}"
    )
  if code.min() < 0:
    raise UserError(f"a schedule holds numbers >= 0, got {code.min()}")
  code = code.astype(np.int64)
  return Schedule(code, np.ones(code.shape), code)


def sudden(
  num_slots: int,
  before: Sequence[int] | np.ndarray,
  after: Sequence[int] | np.ndarray,
  at: int | Sequence[int] | np.ndarray,
) -> Schedule:
  """From slot `at` on, `after` instead of `before`.

  Args:
    num_slots: T.
    before, after: i[N]; a client with both equal does not drift.
    at: one slot, or i[N]; T or later is never.
  """
  return gradual(num_slots, before, after, at, 1)


def gradual(
  num_slots: int,
  before: Sequence[int] | np.ndarray,
  after: Sequence[int] | np.ndarray,
  at: int | Sequence[int] | np.ndarray,
  width: int,
) -> Schedule:
  """From slot `at` on, ever more of the examples have `after`.

  1/width of them, 2/width, ..., all; an example that changed stays so.

  Args:
    num_slots: T.
    before, after: i[N]; a client with both equal does not drift.
    at: one slot, or i[N]; T or later is never.
    width: slots until all examples have `after`, >= 1.
  """
  if width < 1:
    raise UserError(f"gradual drift needs a width of 1 slot or more: {width}")
  before, after = np.broadcast_arrays(np.asarray(before), np.asarray(after))
  if before.ndim != 1:
    raise UserError("before and after must have one number a client, [N]")
  steps = np.arange(num_slots)[:, None] + 1 - np.broadcast_to(at, before.shape)
  share = np.clip(steps / width, 0, 1)
  code = table(np.where(share > 0, after, before)).code
  share = np.where((share > 0) & (before != after), share, 1.0)
  return Schedule(code, share, np.where(share < 1, before, code))


def incremental(
  num_slots: int,
  path: Sequence[int],
  num_clients: int,
  at: int | Sequence[int] | np.ndarray,
) -> Schedule:
  """One step a slot along a path: path[0] before slot `at`, path[1] in it, ...

  E.g. rotations of 0, 10, ..., 90 degrees as ten views.

  Args:
    num_slots: T.
    path: positions in the list of views or concepts; the last one stays.
    num_clients: N.
    at: one slot, or i[N] (clients at different times); T or later is never.
  """
  steps = np.arange(num_slots)[:, None] + 1 - np.broadcast_to(at, num_clients)
  return table(np.asarray(path)[np.clip(steps, 0, len(path) - 1)])


def recurring(
  num_slots: int,
  path: Sequence[int],
  num_clients: int,
  period: int = 1,
  phase: int | Sequence[int] | np.ndarray = 0,
) -> Schedule:
  """The same ones again and again: path[((t + phase) // period) mod length].

  Args:
    num_slots: T.
    path: positions in the list of views or concepts.
    num_clients: N.
    period: slots that each of them lasts, >= 1.
    phase: slots by which a client is ahead, one or i[N].
  """
  if period < 1:
    raise UserError(
      f"recurring drift needs a period of 1 slot or more: {period}"
    )
  now = np.arange(num_slots)[:, None] + np.broadcast_to(phase, num_clients)
  return table(np.asarray(path)[now // period % len(path)])


def redealt(
  num_slots: int,
  num_clients: int,
  at: int | Sequence[int],
  *,
  share: float = 1.0,
  seed: int = 0,
) -> Schedule:
  """Label drift: in each slot of `at`, clients pass their parts round.

  A share of the clients, chosen anew each time, is put in a random circle and
  each takes over the whole part of the next one, train and test rows.

  Args:
    num_slots: T.
    num_clients: N, >= 2.
    at: one slot or several.
    share: of the clients, at least 2 of them.
    seed: of the choice and the circle.

  Returns:
    A schedule of parts: each row is a permutation of the clients.
  """
  count = round(share * num_clients)
  if not 2 <= count <= num_clients:
    raise UserError(
      f"label drift needs 2 to {num_clients} clients that change parts, got "
      f"share={share:g} of {num_clients}"
    )
  rng = np.random.default_rng([seed, 4])
  code = np.empty((num_slots, num_clients), np.int64)
  part = np.arange(num_clients)
  for t in range(num_slots):
    if t in np.atleast_1d(at):
      circle = rng.permutation(num_clients)[:count]
      part = part.copy()
      part[circle] = part[np.roll(circle, 1)]
    code[t] = part
  return table(code)
