"""The kept weights as a short vector: the view that travels.

A mask over P weights of which nz are kept becomes the sorted positions of
those nz.  nz is static (a shape), the positions are data: under `vmap` over
seeds every seed has its own mask and the same nz.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from fedjax_het.core.types import Array, Params, PyTree
from fedjax_het.masks import tree as mask_tree


class Support(NamedTuple):
  """Where the kept weights are.

  index: i32[nz], increasing positions in the flat vector of the P maskable
    weights (`tree.ravel`).
  """

  index: Array

  def gather(self, tree: PyTree) -> Array:
    """The kept weights of a tree like the parameters, [nz]."""
    flat = mask_tree.ravel(tree)
    return flat.at[self.index].get(
      mode="fill", fill_value=0, indices_are_sorted=True
    )

  def scatter(self, values: Array, like: PyTree) -> PyTree:
    """The transpose of `gather`: `values` in place, zeros everywhere else.

    For gradients and deltas; dense leaves of the result are zeros.

    Args:
      values: [nz].
      like: a tree like the parameters, for its structure and shapes.
    """
    return self.place(values, jax.tree.map(jnp.zeros_like, like))

  def place(self, values: Array, params: Params) -> Params:
    """The pruned model whose kept weights are `values`.

    Args:
      values: [nz].
      params: gives the structure and the dense leaves, which stay; its
        maskable leaves are not read.

    Returns:
      Parameters: kept weights from `values`, pruned weights 0.
    """
    flat = jnp.zeros(mask_tree.num_maskable(params), values.dtype)
    flat = flat.at[self.index].set(values, mode="drop", indices_are_sorted=True)
    return mask_tree.unravel(flat, params)

  def mask(self, like: PyTree) -> PyTree:
    """The mask that this support came from."""
    kept = jnp.ones(self.index.shape, bool)
    return self.place(kept, mask_tree.full_mask(like))


def support_of(mask: PyTree, size: int) -> Support:
  """Lists the kept weights of a mask.

  Args:
    mask: bool tree of one model (vmap for several).
    size: nz, how many weights the mask keeps, static: for `top_k_mask` and
      `synflow` it is `budgets.surviving(params, density)`.

  Returns:
    A `Support`.

  Raises:
    ValueError: the mask is concrete and keeps another number of weights.
      Under jit nothing can be raised: a mask that keeps more would lose the
      last ones, one that keeps fewer is padded with P, which `gather` reads
      as 0 and `place` drops.
  """
  flat = mask_tree.ravel(mask)
  if not isinstance(flat, Tracer):
    kept = int(mask_tree.num_kept(mask))
    if kept != size:
      raise ValueError(f"the mask keeps {kept} weights, not size={size}")
  index = jnp.flatnonzero(flat, size=size, fill_value=flat.size)
  return Support(index.astype(jnp.int32))
