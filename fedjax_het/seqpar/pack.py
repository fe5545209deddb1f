"""From a plan and documents to arrays: rows of tokens for groups of devices.

A task's documents are laid behind each other in one row, padded at the end
(segment 0, weight 0) and cut evenly over the group.  Programs are compiled for
few sizes only, a *ladder*: a device's share is padded to the smallest rung that
holds it, here (`pack_groups`) or on the device (`pack_rounds`).

All on the host, in NumPy.

Shape legend: T tokens of a row, D devices, R rounds, K tokens that a device can
hold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.models.transformer import Tokens
from fedjax_het.seqpar.attention import split_degree
from fedjax_het.seqpar.types import Plan, Task


class Group(NamedTuple):
  """A task's row: devices first .. first + degree - 1, tokens [T]."""

  first: int
  degree: int
  tokens: Tokens


class Groups(NamedTuple):
  """A step for `groups.make_group_step`.

  groups: in the order in which they run.
  num_devices: D.
  weight: sum of the weights of all targets.
  """

  groups: tuple[Group, ...]
  num_devices: int
  weight: float


class Rounds(NamedTuple):
  """A step for `step.make_step`: arrays whose shapes no plan changes.

  tokens: `Tokens` of [R, D K]; device i holds the columns from i K.
  level: i32[R, D], log2 of the degree of the device's group.
  held: i32[R, D], how many of its K tokens the device holds, the same in a
    group; 0 if it has no task in this round.
  weight: f32[], sum of the weights of all targets.
  """

  tokens: Tokens
  level: np.ndarray
  held: np.ndarray
  weight: np.ndarray


def pack_groups(
  plan: Plan,
  documents: Sequence[np.ndarray],
  *,
  ladder: Sequence[int],
  limit: int,
  weights: Sequence[np.ndarray] | None = None,
) -> Groups:
  """The rows of all tasks.

  Args:
    plan: made for the lengths of `documents`.
    documents: tokens int[n] of each.
    ladder: tokens that a device may hold, increasing.
    limit: most devices of an all-to-all, `step.ulysses_limit`.
    weights: f32[n] of each document's tokens as targets (the first is never
      one); 1 by default, 0 for a prompt that is not learnt.

  Returns:
    A `Groups`.

  Raises:
    UserError: a task whose share exceeds the ladder's last rung; a batch
      without a target.
    ValueError: documents of other lengths than the plan's.
  """
  _check_documents(plan, documents, weights)
  groups = []
  for task in _in_order(plan):
    shares = _shares(task, plan, documents, weights, limit, ladder[-1])
    size = next(rung for rung in ladder if rung >= shares.token.shape[1])
    rest = (0, 0), (0, size - shares.token.shape[1])
    row = Tokens(*(np.pad(part, rest).reshape(-1) for part in shares))
    groups.append(Group(task.first, task.degree, row))
  weight = sum(float(group.tokens.weight.sum()) for group in groups)
  return Groups(tuple(groups), plan.num_devices, _positive(weight))


def pack_rounds(
  plan: Plan,
  documents: Sequence[np.ndarray],
  *,
  capacity: int,
  limit: int,
  rounds: int | None = None,
  weights: Sequence[np.ndarray] | None = None,
) -> Rounds:
  """The same step as arrays over rounds and devices.

  A group takes the first round in which all its devices are free, in the order
  of the plan; in a laminar plan no device ever waits for that.

  Args:
    plan, documents, limit, weights: as for `pack_groups`.
    capacity: K.
    rounds: R; by default the next power of two, so that few R occur.

  Returns:
    A `Rounds`.

  Raises:
    UserError: as `pack_groups`; `rounds` are too few; a group that is no
      aligned block of a size that divides D.
    ValueError: as `pack_groups`.
  """
  _check_documents(plan, documents, weights)
  placed, free = [], np.zeros(plan.num_devices, np.int64)
  for task in _in_order(plan):
    if plan.num_devices % task.degree or task.first % task.degree:
      raise UserError(
        f"{task}: one program for all plans takes blocks that are halves of "
        f"halves of {plan.num_devices} devices: use groups.make_group_step"
      )
    devices = slice(task.first, task.first + task.degree)
    placed.append((int(free[devices].max()), devices, task))
    free[devices] = free[devices].max() + 1
  need = int(free.max(initial=1))
  if rounds is None:
    rounds = 1 << (need - 1).bit_length()
  if rounds < need:
    raise UserError(
      f"this plan takes {need} rounds, {rounds} were allowed: give rounds >= "
      f"{need}, or None"
    )
  shape = rounds, plan.num_devices, capacity
  out = _padding(shape)
  level = np.zeros(shape[:2], np.int32)
  held = np.zeros(shape[:2], np.int32)
  for number, devices, task in placed:
    shares = _shares(task, plan, documents, weights, limit, capacity)
    size = shares.token.shape[1]
    for whole, part in zip(out, shares, strict=True):
      whole[number, devices, :size] = part
    level[number, devices] = task.degree.bit_length() - 1
    held[number, devices] = size
  tokens = Tokens(*(part.reshape(rounds, -1) for part in out))
  weight = np.float32(_positive(tokens.weight.sum(dtype=np.float64)))
  return Rounds(tokens, level, held, weight)


def make_ladder(capacity: int, rungs: int = 3) -> tuple[int, ...]:
  """Tokens a device may hold: capacity, and halves of it below.

  Args:
    capacity: K, the last rung.
    rungs: how many; more of them pad less and compile longer.

  Example:
    >>> make_ladder(2048)
    (512, 1024, 2048)
  """
  if capacity < 1 or rungs < 1:
    raise UserError(f"a ladder of {rungs} up to {capacity}: give 1 or more")
  return tuple(sorted({-(-capacity >> i) for i in range(rungs)}))


def lay_out(tokens: int, ring: int) -> np.ndarray:
  """i64[T]: which token of the row lies where, for a ring of `ring` ranks.

  Rank r holds tokens r, r + ring, r + 2 ring, ...; the devices of its Ulysses
  group hold equal runs of these.
  """
  return np.arange(tokens).reshape(-1, ring).T.reshape(-1)


def pack_row(
  documents: Sequence[np.ndarray],
  tokens: int,
  weights: Sequence[np.ndarray] | None = None,
) -> Tokens:
  """Documents behind each other in a row of T tokens.

  Args:
    documents: int[n] each.
    tokens: T >= the sum of their lengths.
    weights: as for `pack_groups`, for these documents.

  Returns:
    `Tokens` of NumPy arrays [T].

  Raises:
    ValueError: they do not fit.
  """
  lengths = [len(document) for document in documents]
  if sum(lengths) > tokens:
    raise ValueError(f"{sum(lengths)} tokens do not fit a row of {tokens}")
  row = _padding((tokens,))
  start = 0
  for i, document in enumerate(documents):
    end = start + len(document)
    row.token[start:end] = document
    row.target[start : end - 1] = document[1:]
    row.segment[start:end] = i + 1
    row.position[start:end] = np.arange(end - start)
    row.weight[start : end - 1] = 1 if weights is None else weights[i][1:]
    start = end
  return row


def _shares(task, plan, documents, weights, limit, capacity) -> Tokens:
  """A task's row as it lies on the devices, [degree, tokens of a device]."""
  total = int(plan.lengths[list(task.sequences)].sum())
  size = -(-total // task.degree)
  if size > capacity:
    raise UserError(
      f"a task of {total} tokens on {task.degree} devices takes {size} a "
      f"device, which can hold {capacity}: plan with the memory that so many "
      "tokens take, or let devices hold more"
    )
  chosen = [documents[i] for i in task.sequences]
  own = None if weights is None else [weights[i] for i in task.sequences]
  row = pack_row(chosen, size * task.degree, own)
  order = lay_out(size * task.degree, split_degree(task.degree, limit)[0])
  return Tokens(*(part[order].reshape(task.degree, size) for part in row))


def _padding(shape: tuple[int, ...]) -> Tokens:
  ids = [np.zeros(shape, np.int32) for _ in range(4)]
  return Tokens(*ids, np.zeros(shape, np.float32))


def _in_order(plan: Plan) -> list[Task]:
  return sorted(plan.tasks, key=lambda task: (task.step, task.first))


def _positive(weight: float) -> float:
  if weight > 0:
    return weight
  raise UserError(
    "this batch has nothing to learn: give documents of two tokens or more, "
    "and targets of a positive weight"
  )


def _check_documents(plan, documents, weights) -> None:
  given = [len(document) for document in documents]
  if not np.array_equal(given, plan.lengths):
    raise ValueError("the plan was made for documents of other lengths")
  if weights is not None and given != [len(weight) for weight in weights]:
    raise ValueError("weights must be as long as their documents")
