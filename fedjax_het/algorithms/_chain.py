"""A network as a chain of layers: which units lie where in its parameters.

Width sub-models keep some units of every hidden layer, and with them the block
of each kernel whose inputs and outputs are both kept.

What is supported: dense and convolution layers one after the other, with at
most one bias each, and activations that act on each unit alone (ReLU, pooling;
flattening to [H W C] before a dense layer): `models.mlp`, `lenet`, `cnn`.  A
masked chain is then exactly the narrow network.  Skip connections without
weights (`models.resnet(norm="none")`) cannot be seen here and do no harm: no
kept kernel reads a unit that is not kept.

Norm layers are refused.  Group and layer norms mix units, so a masked network
would not be the narrow one; the static batch norm of HeteroFL would have to
collect its statistics from all clients after training.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array, Model, Params, PyTree

_HINT = (
  "; width sub-models take chains of dense and convolution layers without "
  "norms, such as models.mlp, lenet, cnn and resnet with norm='none'"
)


class Chain(NamedTuple):
  """Layers 0 ... L - 1; what layer i gives has units[i] units.

  units: C_i of each layer, the last one the classes.
  shapes: the parameters' shapes.
  layer: for each leaf, in the order of `jax.tree.leaves`, its layer.
  """

  units: tuple[int, ...]
  shapes: PyTree
  layer: tuple[int, ...]

  def inputs(self, leaf: int, of_unit: Array) -> Array:
    """Spreads values of units over a kernel's inputs, its last but one axis.

    Where an image was flattened, the channel is the fastest index.
    """
    fan_in = jax.tree.leaves(self.shapes)[leaf].shape[-2]
    return jnp.tile(of_unit, fan_in // of_unit.shape[0])

  def mask(self, kept: Sequence[Array]) -> PyTree:
    """The block that the kept units of each layer leave.

    Args:
      kept: bool[C_i] of every layer.

    Returns:
      A bool tree like the parameters.
    """
    leaves = []
    for i, shape in enumerate(jax.tree.leaves(self.shapes)):
      layer = self.layer[i]
      mask = kept[layer]
      if len(shape.shape) > 1:
        mask = mask[None, :]
        if layer:
          mask = self.inputs(i, kept[layer - 1])[:, None] & mask
        mask = mask.reshape((1,) * (len(shape.shape) - 2) + mask.shape)
      leaves.append(jnp.broadcast_to(mask, shape.shape))
    return jax.tree.unflatten(jax.tree.structure(self.shapes), leaves)

  def scale_hidden(self, params: Params, factor: Array) -> Params:
    """Multiplies what every hidden layer gives, before it is activated."""
    leaves, treedef = jax.tree.flatten(params)
    hidden = [layer < len(self.units) - 1 for layer in self.layer]
    return jax.tree.unflatten(
      treedef,
      [x * factor if h else x for x, h in zip(leaves, hidden, strict=True)],
    )


def chain_of(model: Model, layers: Sequence[str] | None = None) -> Chain:
  """Reads the chain off the names and shapes of a model's parameters.

  Args:
    model: the network.
    layers: names of the kernels in the order in which they are applied; None
      takes the natural order of the names (Conv_0, Conv_1, Dense_0, Dense_1).

  Raises:
    UserError: the parameters are no such chain.
  """
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(shapes)
  }
  kernels = [name for name, shape in leaves.items() if len(shape) > 1]
  order = sorted(kernels, key=_natural) if layers is None else list(layers)
  for name in order:
    if name not in kernels:
      raise unknown("layer", name, kernels)
  if sorted(order) != sorted(kernels):
    raise UserError(
      f"layers {', '.join(order)}: name each of {', '.join(kernels)} once"
    )
  for left, right in zip(order, order[1:], strict=False):
    if leaves[right][-2] % leaves[left][-1]:
      raise UserError(
        f"layer {right!r} takes {leaves[right][-2]} inputs, which are no whole "
        f"number of the {leaves[left][-1]} units of {left!r}: give layers= in "
        "the order in which they are applied" + _HINT
      )
  owner = {name: place for place, name in enumerate(order)}
  for name, shape in leaves.items():
    if name not in owner:
      owner[name] = _bias_of(name, shape, order, leaves, owner)
  return Chain(
    tuple(leaves[name][-1] for name in order),
    shapes,
    tuple(owner[name] for name in leaves),
  )


def _bias_of(name, shape, order, leaves, owner) -> int:
  """The layer whose bias this leaf is: that beside it, of as many units."""
  folder = name.rpartition("/")[0]
  places = [
    place
    for place, kernel in enumerate(order)
    if kernel.rpartition("/")[0] == folder and leaves[kernel][-1:] == shape
  ]
  biases = [other for other in owner if len(leaves[other]) == 1]
  taken = {owner[other] for other in biases}
  if len(places) != 1 or places[0] in taken:
    raise UserError(f"parameter {name!r} is no bias of one layer" + _HINT)
  return places[0]


def _natural(name: str) -> list:
  return [
    (int(part), "") if part.isdigit() else (-1, part)
    for part in re.split(r"(\d+)", name)
  ]
