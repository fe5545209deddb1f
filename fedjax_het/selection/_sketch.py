"""Random sketches: inner products of long vectors from short ones."""

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.shuffle import hash32
from fedjax_het.core.types import Array, PyTree


def sketch(message: PyTree, size: int) -> Array:
  """f32[size]: s_j = sum of +-x_i over all i = j (mod size), linear in x.

  E <s(x), s(y)> = <x, y>, with a variance of at most 2 |x|^2 |y|^2 / size: a
  count sketch whose buckets are dealt in turn.

  Args:
    message: its float leaves are x; others are left out.
    size: how many numbers.

  Raises:
    UserError: no float leaf.
  """
  leaves = [
    leaf
    for leaf in jax.tree.leaves(message)
    if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
  ]
  if not leaves:
    raise UserError(
      "this selection compares the directions of updates, and the uploads of "
      "this algorithm hold no floats: choose another selection"
    )
  total = jnp.zeros(size)
  for number, leaf in enumerate(leaves):
    flat = leaf.astype(jnp.float32).reshape(-1)
    place = jnp.arange(flat.size, dtype=jnp.uint32)
    coin = hash32(place ^ hash32(jnp.uint32(number + 1))) >> jnp.uint32(31)
    flat = jnp.where(coin == jnp.uint32(1), flat, -flat)
    flat = jnp.pad(flat, (0, -flat.size % size))
    total = total + jnp.sum(flat.reshape(-1, size), axis=0)
  return total
