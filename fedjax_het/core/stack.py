"""The stack: keeps the uploads of a round side by side, as a monoid.

For servers that must see each upload next to the others (medians, Krum,
clustering).  Memory is O(C P), and over D devices O(D C P) while they merge:
what every other reducer avoids, so take it only where a sum will not do.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, PyTree, Reducer


class Stack(NamedTuple):
  """Up to C messages; the first `count` places are taken.

  messages: tree of [C, ...], zeros in empty places.
  weights: f32[C], > 0 where a place is taken.
  count: i32[], messages that came; those beyond C are lost.
  """

  messages: PyTree
  weights: Array
  count: Array

  @property
  def here(self) -> Array:
    """bool[C], which places are taken."""
    return self.weights > 0


def stack(capacity: int) -> Reducer:
  """Keeps the messages themselves; those of weight 0 never came.

  The order of the places depends on chunks and devices: whoever reads the
  stack must not.  Chunks run while nobody can raise an error, so a stack that
  overflows keeps the first C and says so by `count` > C.

  Args:
    capacity: C, at least the size of the cohort.

  Returns:
    A `Reducer` over messages of any arrays; `finish` gives the `Stack`.

  Raises:
    UserError: no capacity.
  """
  if capacity < 1:
    raise UserError(
      f"a stack for {capacity} messages: give the size of the cohort, >= 1"
    )

  def zero(message):
    return Stack(
      jax.tree.map(lambda m: jnp.zeros((capacity, *m.shape), m.dtype), message),
      jnp.zeros(capacity),
      jnp.int32(0),
    )

  def put(acc, messages, weights, came):
    here = weights > 0
    after = acc.count + jnp.cumsum(here, dtype=jnp.int32) - 1
    place = jnp.where(here, after, capacity)  # beyond the end: dropped
    messages, weights = jax.tree.map(
      lambda old, new: old.at[place].set(new, mode="drop"),
      (acc.messages, acc.weights),
      (messages, weights),
    )
    return Stack(messages, weights, acc.count + came)

  def add(acc, messages, weights):
    return put(acc, messages, weights, jnp.sum(weights > 0, dtype=jnp.int32))

  def merge(a, b):
    return put(a, b.messages, b.weights, b.count)

  return Reducer(zero, add, merge, lambda acc: acc)
