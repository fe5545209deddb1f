"""Blocks of parameters and the knapsack that chooses some (pFedGate).

A tensor of d parameters, laid out output unit by output unit, is cut into a
first block that is always kept and B - 1 blocks of equal sizes (give or take
one), so that blocks are slabs of output units.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array, Params, PyTree

ORDERS = ("per_weight", "rounded")


class Blocks(NamedTuple):
  """The L blocks of a model, numbered leaf by leaf.

  shapes: the parameters' shapes.
  sizes: for each leaf, parameters in each of its blocks.
  """

  shapes: PyTree
  sizes: tuple[tuple[int, ...], ...]

  @property
  def weights(self) -> np.ndarray:
    """i32[L]: W_l, how many parameters each block has."""
    return np.concatenate([np.array(leaf, np.int32) for leaf in self.sizes])

  @property
  def first(self) -> np.ndarray:
    """bool[L]: the blocks that are always kept."""
    return np.concatenate([np.arange(len(leaf)) == 0 for leaf in self.sizes])

  def expand(self, of_block: Array) -> PyTree:
    """One value for each block [L] to one for each of its parameters."""
    leaves, start = [], 0
    for leaf, sizes in zip(
      jax.tree.leaves(self.shapes), self.sizes, strict=True
    ):
      values = of_block[start : start + len(sizes)]
      start += len(sizes)
      outputs = leaf.shape[-1] if leaf.shape else 1
      leaves.append(_slabs(values, sizes, outputs).reshape(leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(self.shapes), leaves)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _slabs(values: Array, sizes: tuple[int, ...], outputs: int) -> Array:
  """values [B] to [inputs, outputs], block after block down the columns."""
  inputs = sum(sizes) // outputs
  shape = inputs, outputs
  place = jax.lax.broadcasted_iota(jnp.int32, shape, 1) * inputs
  place = place + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  spread = jnp.broadcast_to(values[0], shape)
  for i, first in enumerate(np.cumsum(sizes)[:-1], 1):
    spread = jnp.where(place >= int(first), values[i], spread)
  return spread


def _slabs_forward(values, sizes, outputs):
  return _slabs(values, sizes, outputs), None


def _slabs_backward(sizes, outputs, _, grads):
  """Sums over blocks: whole columns at once, and the two cut ones."""
  inputs, columns = sum(sizes) // outputs, jnp.sum(grads, axis=0)
  sums, end = [], 0
  for size in sizes:
    (first, above), (last, below) = (
      divmod(place, inputs) for place in (end, end + size)
    )
    end += size
    if first == last:
      sums.append(jnp.sum(grads[above:below, first]))
      continue
    total = jnp.sum(columns[first:last])
    if above:
      total = total - jnp.sum(grads[:above, first])
    if below:
      total = total + jnp.sum(grads[:below, last])
    sums.append(total)
  return (jnp.stack(sums),)


_slabs.defvjp(_slabs_forward, _slabs_backward)


def cut(params: Params, parts: int, first_share: float) -> Blocks:
  """Cuts every leaf into blocks.

  Args:
    params: parameters, or their shapes.
    parts: B; a leaf of fewer parameters has fewer blocks.
    first_share: the first block has max(1, floor(first_share d)) of d
      parameters (paper: floor, which leaves small tensors without one).

  Raises:
    UserError: parts < 1 or a share out of (0, 1].
  """
  if parts < 1 or not 0 < first_share <= 1:
    raise UserError(
      f"parts {parts}, first_share {first_share:g}: give at least one block a "
      "tensor, and a share in (0, 1]"
    )

  def sizes(size):
    first = size if parts == 1 else max(1, int(first_share * size + 1e-6))
    rest = np.array_split(np.arange(size - first), max(1, parts - 1))
    return (first, *(len(part) for part in rest if len(part)))

  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params
  )
  return Blocks(
    shapes,
    tuple(sizes(int(np.prod(s.shape))) for s in jax.tree.leaves(shapes)),
  )


def knapsack(
  value: Array, blocks: Blocks, capacity: int, order: str = "per_weight"
) -> Array:
  """Chooses blocks of large value that weigh no more than `capacity`.

  Greedy: first blocks are in; the others, in order, are taken if they still
  fit.  Its value misses the optimum by less than the largest single value if
  blocks go by value per weight (the next block of the continuous relaxation),
  and not at all if all weigh the same.

  Args:
    value: f32[L], V_l >= 0.
    blocks: their weights, and which are first.
    capacity: most parameters to keep, the first blocks included.
    order: "per_weight", V_l / W_l; or "rounded", round(10 V_l) whatever the
      weight, as in the released code (which splits the capacity between dense
      and other layers); ties by number.

  Returns:
    bool[L].

  Raises:
    UserError: an unknown order, or a capacity below the first blocks.
  """
  if order not in ORDERS:
    raise unknown("order", order, ORDERS)
  weights, first = blocks.weights, blocks.first
  room = capacity - int(weights[first].sum())
  if room < 0:
    raise UserError(
      f"a capacity of {capacity} parameters, but the first blocks, which are "
      f"always kept, have {int(weights[first].sum())}: raise the density or "
      "lower first_share"
    )
  others = np.flatnonzero(~first)
  if not others.size or int(weights.sum()) <= capacity:
    return jnp.ones(len(weights), bool)
  mine = value[others]
  if order == "per_weight":
    priority = mine / jnp.asarray(weights[others], mine.dtype)
  else:
    priority = jnp.round(10 * mine)
  places = jnp.asarray(others)[jnp.argsort(-priority)]

  def take(room, weight):
    fits = weight <= room
    return jnp.where(fits, room - weight, room), fits

  _, taken = jax.lax.scan(take, jnp.int32(room), jnp.asarray(weights)[places])
  return jnp.asarray(first).at[places].set(taken)
