"""How the vectors of `_lora_rounds` travel: with positions, or without.

A vector f32[V] is sparse in its first S entries, cut into segments; those
behind them always travel whole (`_lora_parts`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from fedjax_het.algorithms._kept_values import everybody_mean, kept_values
from fedjax_het.core import reduce
from fedjax_het.core.types import Array, Key, PyTree, Reducer
from fedjax_het.masks.nonzero import NonZeros
from fedjax_het.masks.sparse_wire import SparseValues


class Down(NamedTuple):
  """A vector on its way to a client.

  pack: (vector f32[V], mask bool[V], tier i32[]) -> message.
  open: message -> (vector, 0 outside the mask; mask).
  """

  pack: Callable[[Array, Array, Array], PyTree]
  open: Callable[[PyTree], tuple[Array, Array]]


class Up(NamedTuple):
  """Changes on their way to the server.

  pack: (change f32[V], mask bool[V], tier i32[], key) -> message.
  reducer: of the messages;  read: what it gives -> mean change f32[V].
  """

  pack: Callable[[Array, Array, Array, Key], PyTree]
  reducer: Reducer
  read: Callable[[PyTree], Array]


def positions_down(segments: tuple[int, ...], told: tuple[bool, ...]) -> Down:
  """Values and, for the tiers that are told, positions.

  32 bits a value; told, min(P_l, k_l b_l) bits and 4 bytes a segment.

  Args:
    segments: P_l; their sum S entries are sparse, those behind them travel.
    told: one a tier; False where everything travels anyway.
  """
  sparse = sum(segments)

  def pack(vector, mask, tier):
    values = jnp.where(mask, vector, 0.0)
    new = jnp.asarray(told)[tier]
    first = SparseValues(values[:sparse], mask[:sparse], new, segments)
    return first, vector[sparse:]

  def open(message):
    first, rest = message
    return jnp.concatenate([first.values, rest]), jnp.concatenate(
      [first.kept, jnp.ones(rest.size, bool)]
    )

  return Down(pack, open)


def known_down(note: Callable[[Array], Array] | None = None) -> Down:
  """Values alone: the client knows the mask, or the note says it.

  Args:
    note: mask bool[V] -> bool[n], which travels as n bits.
  """
  return Down(
    lambda vector, mask, tier: kept_values(
      vector, mask, None if note is None else note(mask)
    ),
    lambda message: (message.values, message.mask),
  )


def known_up() -> Up:
  """Changes inside the mask, which the server knows; missing is 0."""
  return Up(
    lambda change, mask, tier, key: kept_values(change, mask),
    everybody_mean(),
    lambda mean: mean,
  )


def nonzero_up(
  segments: tuple[int, ...],
  mask_of: Callable[[Array, Key, Array], Array] | None,
) -> Up:
  """Some of the changes with their positions; missing is 0.

  The message is made of floats alone, so that privacy's and the robust rules'
  transformations take it.

  Args:
    segments: as in `positions_down`.
    mask_of: (|change| f32[S], key, tier) -> bool[S], what travels; None: all of
      it, without positions.
  """
  sparse = sum(segments)

  def pack(change, mask, tier, key):
    del mask
    first = change[:sparse]
    if mask_of is not None:
      kept = mask_of(jnp.abs(first), key, tier)
      first = NonZeros(jnp.where(kept, first, 0.0), segments)
    return first, change[sparse:]

  def read(mean):
    first, rest = mean
    values = first if mask_of is None else first.values
    return jnp.concatenate([values, rest])

  return Up(pack, reduce.weighted_mean(), read)
