"""Mask trees: which weights of a model are kept.

Conventions of the whole package:

- A leaf of two or more dimensions (the kernel of a dense or convolution
  layer, last axis = output units) is *maskable* and is called a layer.  Any
  other leaf (bias, norm scale) is *dense*: never pruned, never counted.
- A mask has the structure and the shapes of the parameters, with bool leaves;
  dense leaves are all True, so that every `jax.tree.map` works unchanged.
- The maskable weights have one flat order: leaves in the order of
  `jax.tree.leaves`, each ravelled in C order.  P is their number.
- Every function sees one model.  Models stacked over seeds go through
  `jax.vmap`: a stacked bias would otherwise pass for a kernel.
"""

import math

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Params, PyTree


def maskable(params: Params) -> PyTree:
  """Which leaves can be pruned: a tree of Python bools, static under jit."""
  return jax.tree.map(_is_layer, params)


def layers(tree: PyTree) -> dict[str, Array]:
  """The maskable leaves by name, e.g. "params/Dense_0/kernel", in flat order.

  Args:
    tree: parameters, scores or a mask of one model.

  Raises:
    UserError: no leaf is maskable.
  """
  found = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if _is_layer(leaf)
  }
  if not found:
    raise UserError(
      "this model has no weight matrix to prune (no leaf of 2 or more "
      "dimensions): choose a model with dense or convolution layers"
    )
  return found


def layer_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
  """The shapes of the maskable leaves by name, in flat order."""
  return {name: tuple(leaf.shape) for name, leaf in layers(tree).items()}


def num_maskable(tree: PyTree) -> int:
  """P, the number of maskable weights."""
  return sum(math.prod(shape) for shape in layer_shapes(tree).values())


def full_mask(params: Params) -> PyTree:
  """The mask that keeps everything."""
  return jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)


def apply_mask(params: Params, mask: PyTree) -> Params:
  """m * theta, with pruned weights exactly +0 even where theta is not finite.

  Args:
    params: float arrays (also gradients, deltas: any tree like them).
    mask: bool arrays of the same structure and shapes.

  Returns:
    A tree like `params`.
  """
  return jax.tree.map(
    lambda p, m: jnp.where(m, p, jnp.zeros_like(p)), params, mask
  )


def num_kept(mask: PyTree) -> Array:
  """Kept maskable weights, i32[]."""
  return sum(map(_count, layers(mask).values()), start=jnp.int32(0))


def density(mask: PyTree) -> Array:
  """Kept share of the maskable weights, f32[] in [0, 1]."""
  total = jnp.float32(num_maskable(mask))
  return num_kept(mask).astype(jnp.float32) / total


def layer_density(mask: PyTree) -> dict[str, Array]:
  """Kept share of each layer by name, f32[] in [0, 1]."""
  return {
    name: _count(leaf).astype(jnp.float32) / jnp.float32(leaf.size)
    for name, leaf in layers(mask).items()
  }


def no_layer_empty(mask: PyTree) -> Array:
  """True where every layer keeps a weight, bool[]; works under jit and vmap."""
  return jnp.stack([jnp.any(leaf) for leaf in layers(mask).values()]).all()


def check_no_layer_empty(mask: PyTree) -> None:
  """Host-side form of `no_layer_empty` for a concrete mask.

  Raises:
    UserError: some layer keeps nothing, so the network's output is constant.
  """
  for name, leaf in layers(mask).items():
    if not leaf.any():
      raise UserError(
        f"the mask keeps no weight of layer {name!r} ({leaf.size} weights; "
        f"density {float(density(mask)):.2g} overall): raise the density, or "
        "rank by synflow, per layer, or with min_per_layer"
      )


def ravel(tree: PyTree) -> Array:
  """The maskable leaves as one vector [P] in flat order."""
  return jnp.concatenate([leaf.reshape(-1) for leaf in layers(tree).values()])


def unravel(flat: Array, like: PyTree) -> PyTree:
  """`like` with its maskable leaves replaced by the entries of `flat`.

  Args:
    flat: [P], any dtype; the maskable leaves of the result have it.
    like: gives the structure and the dense leaves.

  Returns:
    A tree of the structure of `like`; `unravel(ravel(t), t)` is `t`.
  """
  leaves, treedef = jax.tree.flatten(like)
  out, start = [], 0
  for leaf in leaves:
    if not _is_layer(leaf):
      out.append(leaf)
      continue
    out.append(flat[start : start + leaf.size].reshape(leaf.shape))
    start += leaf.size
  return jax.tree.unflatten(treedef, out)


def _is_layer(leaf: Array) -> bool:
  return leaf.ndim >= 2


def _count(leaf: Array) -> Array:
  return jnp.sum(leaf, dtype=jnp.int32)
