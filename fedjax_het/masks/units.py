"""Structured masks: whole output units of a layer stay or go.

An output unit is what the last axis counts: a neuron of a dense layer with all
its incoming weights, a filter of a convolution.  A mask of units makes the
layer smaller, not only sparser.
"""

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Params, PyTree
from fedjax_het.masks import select
from fedjax_het.masks import tree as mask_tree


def unit_counts(
  params: Params, density: float, whole: Collection[str] = ()
) -> dict[str, int]:
  """How many units each layer keeps: round(d U_l) of U_l, but at least one.

  Args:
    params: parameters of one model, or their shapes.
    density: d in (0, 1].
    whole: names of layers that keep all, e.g. the one that makes the logits.

  Raises:
    UserError: d is not in (0, 1], or `whole` names what is no layer.
  """
  if not 0 < density <= 1:
    raise UserError(
      f"density {density:g} is not in (0, 1]: it is the share of the units "
      "that are kept"
    )
  shapes = mask_tree.layer_shapes(params)
  for name in whole:
    if name not in shapes:
      raise unknown("layer", name, shapes)
  return {
    name: shape[-1] if name in whole else max(1, round(density * shape[-1]))
    for name, shape in shapes.items()
  }


def top_units(scores: PyTree, counts: Mapping[str, int]) -> PyTree:
  """Keeps in each layer the units whose weights have the largest sum of scores.

  Args:
    scores: tree like the parameters; larger = kept.
    counts: layer name -> units that stay; ties go to the lower unit.

  Returns:
    A mask tree, True on dense leaves.
  """
  parts = []
  for name, leaf in mask_tree.layers(scores).items():
    sums = jnp.sum(leaf.astype(jnp.float32), axis=tuple(range(leaf.ndim - 1)))
    order = jnp.arange(sums.size - 1, -1, -1, dtype=jnp.int32)
    stays = select.exact_top_k(sums, order, counts[name])
    ones = (1,) * (leaf.ndim - 1)
    whole = jnp.broadcast_to(stays.reshape(*ones, -1), leaf.shape)
    parts.append(whole.reshape(-1))
  full = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), scores)
  return mask_tree.unravel(jnp.concatenate(parts), full)
