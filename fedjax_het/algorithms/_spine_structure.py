"""Which units of a network structured pruning can remove, and what they cost.

A unit is a head or a hidden channel: what it gives are some columns of the
matrices before it, and it is read through as many rows of the matrices behind
it.  With a 0 in its place nothing of it is left, so that masks of fixed shape
stand for networks of many shapes; time and bytes are counted from the masks.

In a transformer (`models.vit`, or any layers of `models._blocks`) units are the
heads and the channels of every layer; in a chain of dense layers, the units of
the hidden ones.

Shape legend: I, O inputs and outputs of a matrix, G units of a group, L layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Params
from fedjax_het.models._blocks import layer_names

HEADS, CHANNELS = "heads", "channels"
Keep = dict[str, Array]  # group -> f32[G], 0 where a unit was removed


class Group(NamedTuple):
  """The units of one layer.

  name: "layer_0/heads";  kind: HEADS or CHANNELS;  size: G.
  made_by: the matrices whose columns they are, O / G neighbours each.
  read_by: the matrices whose rows they are, I / G neighbours each.
  """

  name: str
  kind: str
  size: int
  made_by: tuple[str, ...]
  read_by: tuple[str, ...]


class Structure(NamedTuple):
  """groups: in the order of the layers.

  matrices: name -> (I, O) of those that units lie between.
  adapted: the names of those with an adapter.
  put: (parameters, keep) -> parameters of the pruned network.
  """

  groups: tuple[Group, ...]
  matrices: dict[str, tuple[int, int]]
  adapted: tuple[str, ...]
  put: Callable[[Params, Keep], Params]

  @property
  def size(self) -> int:
    """How many units there are."""
    return sum(group.size for group in self.groups)


def structure_of(
  shapes: Params, adapted: tuple[str, ...], heads: int | None
) -> Structure:
  """Finds the units of a network.

  Args:
    shapes: of the model's parameters.
    adapted: names of the matrices with adapters.
    heads: of every layer of a transformer; None: a chain of dense layers.

  Raises:
    UserError: a transformer without `heads`, heads that do not divide its
      matrices or share keys, or a network that is neither.
  """
  layers = layer_names(shapes)
  if layers and heads is None:
    raise UserError(
      "a transformer is pruned by heads: say how many a layer has, heads=..."
    )
  if layers:
    return _of_transformer(shapes, layers, adapted, heads)
  return _of_chain(shapes, adapted)


def everything(structure: Structure) -> Keep:
  """Nothing is removed."""
  return {group.name: jnp.ones(group.size) for group in structure.groups}


def flat(structure: Structure, keep: Keep) -> Array:
  """The groups one after another, [sum G], in the order of the structure.

  Not that of the dict: JAX sorts the keys of those that it gives back.
  """
  return jnp.concatenate([keep[group.name] for group in structure.groups])


def unflat(structure: Structure, values: Array) -> Keep:
  """The inverse of `flat`, as f32; also takes bool."""
  out, start = {}, 0
  for group in structure.groups:
    out[group.name] = values[start : start + group.size].astype(jnp.float32)
    start += group.size
  return out


def sparsity(keep: Keep) -> Array:
  """f32[]: the share of the units that is removed, kinds counted alike.

  A layer has many more channels than heads: each kind's share is taken first,
  so that this is the pruning ratio where both were pruned by it.
  """
  kinds = dict.fromkeys(name.rpartition("/")[2] for name in keep)
  shares = [
    jnp.mean(jnp.concatenate([k for n, k in keep.items() if n.endswith(kind)]))
    for kind in kinds
  ]
  return 1 - jnp.mean(jnp.stack(shares))


def work(structure: Structure, keep: Keep, rank: Array | float) -> Array:
  """f32[]: multiply-adds of one token in training, with adapters of a rank.

  A frozen matrix is multiplied twice (outputs, and gradients of its inputs),
  adapters three times.  Only the matrices that units lie between count: not
  embeddings, heads for classes, or the products of attention itself.
  """
  rows, columns = {}, {}
  for group in structure.groups:
    share = jnp.mean(keep[group.name])
    columns |= dict.fromkeys(group.made_by, share)
    rows |= dict.fromkeys(group.read_by, share)
  total = jnp.float32(0)
  for name, (wide, tall) in structure.matrices.items():
    inside, outside = wide * rows.get(name, 1), tall * columns.get(name, 1)
    total = total + 2 * inside * outside
    if name in structure.adapted:
      total = total + 3 * rank * (inside + outside)
  return total


def kernel(params: Params, name: str) -> Array:
  """The matrix f32[I, O] of a name such as "layer_0/q"."""
  for part in name.split("/"):
    params = params[part]
  return params["kernel"]


def _of_transformer(shapes, layers, adapted, heads) -> Structure:
  groups, matrices = [], {}
  for layer in layers:
    sizes = {
      name: tuple(leaf["kernel"].shape)
      for name, leaf in shapes[layer].items()
      if "kernel" in leaf
    }
    if sizes["q"] != sizes["k"] or heads < 1 or sizes["q"][1] % heads:
      raise UserError(
        f"{layer} has queries {sizes['q']} and keys {sizes['k']}: heads="
        f"{heads} must divide them, and every head needs keys of its own"
      )
    up = [n for n in ("gate", "up") if n in sizes]
    matrices |= {f"{layer}/{name}": size for name, size in sizes.items()}
    for kind, size, made, read in (
      (HEADS, heads, ("q", "k", "v"), "o"),
      (CHANNELS, sizes["up"][1], up, "down"),
    ):
      groups.append(
        Group(
          f"{layer}/{kind}",
          kind,
          size,
          tuple(f"{layer}/{name}" for name in made),
          (f"{layer}/{read}",),
        )
      )

  def put(params, keep):
    own = {
      layer: params[layer]
      | {f"keep_{kind}": keep[f"{layer}/{kind}"] for kind in (HEADS, CHANNELS)}
      for layer in layers
    }
    return params | own

  return Structure(tuple(groups), matrices, adapted, put)


def _of_chain(shapes: dict[str, Any], adapted) -> Structure:
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in jax.tree.flatten_with_path(shapes)[0]
  }
  matrices = {
    name.removesuffix("/kernel"): shape
    for name, shape in leaves.items()
    if name.endswith("/kernel") and len(shape) == 2
  }
  names = list(matrices)
  pairs = list(zip(names, names[1:], strict=False))
  if not pairs or any(matrices[a][1] != matrices[b][0] for a, b in pairs):
    raise UserError(
      f"no heads or hidden channels between the matrices {matrices}: "
      "structured pruning takes transformers (models.build('vit', ...)) or "
      "chains of dense layers"
    )
  groups = tuple(
    Group(f"{a}/{CHANNELS}", CHANNELS, matrices[a][1], (a,), (b,))
    for a, b in pairs
  )

  def put(params, keep):
    def rows(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      for group in groups:
        if name == f"{group.read_by[0]}/kernel":
          return leaf * keep[group.name][:, None]
      return leaf

    return jax.tree.map_with_path(rows, params)

  return Structure(groups, matrices, adapted, put)
