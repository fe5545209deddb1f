"""Masks that move: some kept weights go, as many others come.

Numbers of weights are exact in every layer and may be traced, so a schedule is
data.  Ties go to the lower position: nothing is drawn, and whoever has the same
numbers finds the same mask.
"""

import jax
import jax.numpy as jnp

from fedjax_het.core.types import Array, Params, PyTree
from fedjax_het.masks import select
from fedjax_het.masks import tree as mask_tree


def kept_per_layer(mask: PyTree) -> Array:
  """i32[L]: how many weights each layer keeps, in flat order."""
  return jnp.stack(
    [jnp.sum(m, dtype=jnp.int32) for m in mask_tree.layers(mask).values()]
  )


def largest(scores: PyTree, among: PyTree, counts: Array) -> PyTree:
  """Marks the best of each layer.

  Args:
    scores: tree like the parameters, finite; larger = better.
    among: bool tree, what may be marked.
    counts: i32[L], how many in each layer; no more than there are.

  Returns:
    A bool tree, False on dense leaves.
  """
  parts = []
  allowed = mask_tree.layers(among)
  for i, (name, leaf) in enumerate(mask_tree.layers(scores).items()):
    free = allowed[name].reshape(-1)
    flat = jnp.where(free, leaf.reshape(-1).astype(jnp.float32), -jnp.inf)
    keep = jnp.minimum(counts[i], jnp.sum(free, dtype=jnp.int32))
    order = jnp.arange(flat.size - 1, -1, -1, dtype=jnp.int32)
    parts.append(select.exact_top_k(flat, order, keep) & free)
  nothing = jax.tree.map(jnp.zeros_like, mask_tree.full_mask(scores))
  return mask_tree.unravel(jnp.concatenate(parts), nothing)


def by_magnitude(
  params: Params, counts: Array, among: PyTree | None = None
) -> PyTree:
  """The mask that keeps the counts[l] largest |w| of each layer.

  Args:
    params: of one model.
    counts: i32[L], may be traced.
    among: bool tree, what may be kept; default everything.

  Returns:
    A mask tree, True on dense leaves.
  """
  if among is None:
    among = mask_tree.full_mask(params)
  marked = largest(jax.tree.map(jnp.abs, params), among, counts)
  return mask_tree.unravel(mask_tree.ravel(marked), mask_tree.full_mask(params))


def inactive_top(gradients: Params, mask: PyTree, counts: Array) -> PyTree:
  """Marks the counts[l] pruned weights of each layer with the largest |g|."""
  pruned = jax.tree.map(jnp.logical_not, mask)
  return largest(jax.tree.map(jnp.abs, gradients), pruned, counts)


def prune_and_grow(
  params: Params, mask: PyTree, gradients: Params, counts: Array
) -> tuple[Params, PyTree]:
  """Moves counts[l] weights of each layer; how many it keeps stays the same.

  The counts[l] smallest |w| of the kept weights go, and of those that were not
  kept before the counts[l] with the largest |g| come, starting at 0: what was
  just pruned does not come back at once, what just came is not pruned.

  Args:
    params: zero outside the mask.
    mask: before.
    gradients: tree like `params`, finite; read where nothing is kept.
    counts: i32[L], may be traced; cut to what is kept and what is not.

  Returns:
    (params, mask); pruned and grown weights are 0.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
    arXiv:1911.11134, section 3.
  """
  sizes = jnp.asarray([m.size for m in mask_tree.layers(mask).values()])
  kept = kept_per_layer(mask)
  counts = jnp.minimum(
    counts, jnp.minimum(kept, sizes.astype(jnp.int32) - kept)
  )
  smallness = jax.tree.map(lambda p: -jnp.abs(p), params)
  gone = largest(smallness, mask, counts)
  come = inactive_top(gradients, mask, counts)
  stays = jax.tree.map(lambda m, g: m & ~g, mask, gone)
  return (
    mask_tree.apply_mask(params, stays),
    jax.tree.map(lambda s, c: s | c, stays, come),
  )


def cosine_counts(
  mask: PyTree, time: Array, *, share: float, stop: int
) -> Array:
  """How many weights of each layer move: less and less, none from `stop` on.

    a_l(t) = round(share / 2 (1 + cos(pi t / stop)) n_l)

  Args:
    mask: gives n_l, the weights that layer l keeps.
    time: i32[], t >= 0.
    share: of the kept weights, at t = 0.
    stop: the round from which the mask stays; 0: it never moves.

  Returns:
    i32[L].
  """
  kept = kept_per_layer(mask)
  if not stop:
    return jnp.zeros_like(kept)
  angle = jnp.float32(jnp.pi / stop) * time.astype(jnp.float32)
  now = jnp.where(time < stop, share / 2 * (1 + jnp.cos(angle)), 0.0)
  return jnp.round(now * kept.astype(jnp.float32)).astype(jnp.int32)
