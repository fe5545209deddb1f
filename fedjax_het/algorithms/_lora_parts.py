"""What is trained of an adapted model as one vector, and top-k masks over it.

The vector begins with the leaves that may be pruned (A and B of every adapter,
and the matrices trained in full unless they are kept out) and ends with the
others.  Leaves of one dimension, such as a head's bias, are never pruned.

Shape legend: V entries of the vector, S of them prunable, T tiers of clients.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array, Key, Params
from fedjax_het.masks import select
from fedjax_het.models.lora import Adapted

Scope = Literal["matrix", "global"]


class Layout(NamedTuple):
  """Where every leaf of the trained tree is in the vector f32[V].

  ravel: trained tree -> f32[V];  unravel: f32[V] -> trained tree.
  names: of the leaves in the order of the vector, e.g. "lora/layer_0/q/a".
  shapes: of the leaves.
  prunable: how many leaves, the first ones, may be pruned.
  base_bytes: of the frozen parameters, which every client receives once.
  """

  ravel: Callable[[Params], Array]
  unravel: Callable[[Array], Params]
  names: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  prunable: int
  base_bytes: int

  @property
  def sizes(self) -> tuple[int, ...]:
    """Entries of each leaf; they add up to V."""
    return tuple(math.prod(shape) for shape in self.shapes)

  @property
  def pruned_sizes(self) -> tuple[int, ...]:
    """Entries of each prunable leaf; they add up to S."""
    return self.sizes[: self.prunable]


def layout_of(adapted: Adapted, *, include_full: bool) -> Layout:
  """The vector of an adapted model.

  Args:
    adapted: of `models.adapt`.
    include_full: whether matrices that are trained in full may be pruned.
  """
  frozen, trained = jax.eval_shape(adapted.init, jax.random.key(0))
  paths, treedef = jax.tree.flatten_with_path(trained)
  names = [
    jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in paths
  ]
  shapes = [tuple(leaf.shape) for _, leaf in paths]

  def may_go(i):
    return len(shapes[i]) > 1 and (include_full or names[i].startswith("lora/"))

  # False sorts first, and the sort is stable
  order = sorted(range(len(names)), key=lambda i: not may_go(i))
  ordered = [shapes[i] for i in order]

  def ravel(tree):
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([leaves[i].reshape(-1) for i in order])

  def unravel(vector):
    leaves, start = [None] * len(order), 0
    for i, shape in zip(order, ordered, strict=True):
      stop = start + math.prod(shape)
      leaves[i] = vector[start:stop].reshape(shape)
      start = stop
    return jax.tree.unflatten(treedef, leaves)

  return Layout(
    ravel,
    unravel,
    tuple(names[i] for i in order),
    tuple(ordered),
    sum(map(may_go, order)),
    sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(frozen)),
  )


class TopK(NamedTuple):
  """Exact top-k of the S prunable entries, as many as a client's tier keeps.

  mask: (scores f32[S], key, tier i32[], factor f32[]) -> bool[S]; factor, in
    (0, 1], multiplies the counts.  Ties are broken at random.
  segments: what is ranked together: the matrices, or everything (S,).
  counts: kept entries of each segment, one row a tier.
  """

  mask: Callable[[Array, Key, Array, Array], Array]
  segments: tuple[int, ...]
  counts: tuple[tuple[int, ...], ...]

  @property
  def dense(self) -> tuple[bool, ...]:
    """Which tiers keep everything."""
    return tuple(row == self.segments for row in self.counts)


def top_k(layout: Layout, densities: Sequence[float], scope: Scope) -> TopK:
  """Keeps max(1, round(d P_l)) entries of every segment.

  Args:
    layout: of the vector.
    densities: d in (0, 1], one a tier.
    scope: "matrix" ranks every matrix for itself, "global" all together.

  Raises:
    UserError: an unknown scope, or a density out of range.
  """
  if scope not in ("matrix", "global"):
    raise unknown("scope", scope, ("matrix", "global"))
  if not densities or not all(0 < d <= 1 for d in densities):
    raise UserError(
      f"densities {[float(d) for d in densities]}: give at least one, each in "
      "(0, 1], the share of the entries that travels"
    )
  sizes = layout.pruned_sizes
  segments = sizes if scope == "matrix" else (sum(sizes),)
  counts = tuple(
    tuple(max(1, round(d * size)) for size in segments) for d in densities
  )

  # One bisection over padded rows: a loop for each segment took most of the
  # time to compile.
  widest, sparse = max(segments), sum(segments)
  starts = np.cumsum((0, *segments[:-1]))
  place = starts[:, None] + np.arange(widest)[None]
  inside = np.arange(widest)[None] < np.array(segments)[:, None]
  place = np.where(inside, place, sparse)  # where -inf is

  def mask(scores, key, tier, factor):
    rows = jnp.asarray(counts, jnp.float32)[tier]
    keep = jnp.maximum(jnp.round(rows * factor), 1).astype(jnp.int32)
    padded = jnp.concatenate([scores, jnp.full(1, -jnp.inf)])[place]
    keys = jax.random.split(key, len(segments))
    order = jax.vmap(lambda key: select.random_order(key, widest))(keys)
    chosen = jax.vmap(select.exact_top_k)(padded, order, keep)
    return chosen[inside]

  return TopK(mask, segments, counts)


def per_tier(value: float | Sequence[float]) -> tuple[float, ...]:
  """One density for all clients, or one a tier."""
  return tuple(value) if isinstance(value, Sequence) else (value,)
