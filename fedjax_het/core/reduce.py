"""Reducers: how uploads combine, as monoids (`core.types.Reducer`).

Because each is a monoid, one definition serves a chunk of clients, the chunks
of a round, the devices of a mesh and the hosts of a cluster, in memory that
does not grow with the cohort.  Packed sign votes live in `masks.votes`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, PyTree, Reducer


def weighted_mean() -> Reducer:
  """sum_k w_k m_k / sum_k w_k, leaf by leaf (FedAvg's aggregation).

  Returns:
    A `Reducer` over messages whose leaves are all float arrays; `finish` gives
    a tree like the message.  No weight at all gives zeros.
  """

  def zero(message):
    return _float_zeros(message), jnp.float32(0)

  def add(acc, messages, weights):
    total, weight = acc
    total = jax.tree.map(
      lambda t, m: t + _contract(weights, m), total, messages
    )
    return total, weight + jnp.sum(weights)

  def finish(acc):
    total, weight = acc
    return jax.tree.map(lambda t: t / _nonzero(weight), total)

  return Reducer(zero, add, _tree_add, finish)


def mean_and_weight() -> Reducer:
  """`weighted_mean` that also says how much weight there was.

  Returns:
    A `Reducer`; `finish` gives `(mean, weight f32[])`: with weights of 1 the
    server knows how many clients arrived.
  """
  mean = weighted_mean()
  return mean._replace(finish=lambda acc: (mean.finish(acc), acc[1]))


def segment_mean(num_segments: int) -> Reducer:
  """A weighted mean for each of K segments (clusters, model groups).

  Args:
    num_segments: K.

  Returns:
    A `Reducer` over messages `(segment i32[], tree)`; `finish` gives
    `(weight f32[K], tree of [K, ...])`, zeros where a segment got no upload.
  """

  def zero(message):
    _, tree = message
    return jnp.zeros(num_segments), jax.tree.map(
      lambda leaf: jnp.zeros((num_segments, *leaf.shape), leaf.dtype), tree
    )

  def add(acc, messages, weights):
    weight, total = acc
    segment, tree = messages
    member = jax.nn.one_hot(segment, num_segments) * weights[:, None]  # [M, K]
    total = jax.tree.map(
      lambda t, m: t + jnp.tensordot(member, m, axes=(0, 0)), total, tree
    )
    return weight + jnp.sum(member, axis=0), total

  def finish(acc):
    weight, total = acc
    return weight, jax.tree.map(
      lambda t: t / _nonzero(_expand(weight, t)), total
    )

  return Reducer(zero, add, _tree_add, finish)


def overlap_mean() -> Reducer:
  """Divides each coordinate by the weight of the clients that hold it.

  Returns:
    A `Reducer` over messages `(values, mask)`, two trees of one structure, mask
    1 where the client holds the coordinate.  `finish` gives
    `(mean, held)`: the mean over holders and whether anybody held it; the
    server keeps its old value where nobody did (HeteroFL, arXiv:2010.01264).
  """

  def zero(message):
    values, _ = message
    return _float_zeros(values), _float_zeros(values)

  def add(acc, messages, weights):
    total, weight = acc
    values, mask = messages
    mask = jax.tree.map(lambda m, v: m.astype(v.dtype), mask, values)
    total = jax.tree.map(
      lambda t, v, m: t + _contract(weights, v * m), total, values, mask
    )
    weight = jax.tree.map(lambda w, m: w + _contract(weights, m), weight, mask)
    return total, weight

  def finish(acc):
    total, weight = acc
    mean = jax.tree.map(lambda t, w: t / _nonzero(w), total, weight)
    return mean, jax.tree.map(lambda w: w > 0, weight)

  return Reducer(zero, add, _tree_add, finish)


def gives_weight(reducer: Reducer) -> bool:
  """Whether a mean also gives its weight; refuses what is no weighted mean.

  Reducers are functions without a name, so this one is asked for the mean of
  three small messages: means and medians that ignore weights answer otherwise.

  Args:
    reducer: of an algorithm that is to be aggregated in another way.

  Returns:
    False for `weighted_mean`, True for `mean_and_weight`.

  Raises:
    UserError: it is neither.
  """
  values = np.asarray([[1, -2], [3, 5], [-8, 0.5]], np.float32)
  weights = np.asarray([0.5, 1.25, 2.5], np.float32)
  want = np.average(values, axis=0, weights=weights)
  try:
    with jax.ensure_compile_time_eval():
      messages = [jnp.asarray(values)]
      zero = reducer.zero([messages[0][0]])
      mean = reducer.finish(reducer.add(zero, messages, jnp.asarray(weights)))
    with_weight = isinstance(mean, tuple)
    (mean,), weight = mean if with_weight else (mean, weights.sum())
    if np.allclose(mean, want) and np.allclose(weight, weights.sum()):
      return with_weight
  except Exception:
    pass  # made for messages of its own, whatever it says to these
  raise UserError(
    "this algorithm does not take the weighted mean of float messages "
    "(core.reduce.weighted_mean or mean_and_weight): take one that does, e.g. "
    "fed_avg, and wrap it before its aggregation is changed"
  )


def _contract(weights: Array, leaf: Array) -> Array:
  """sum_m w_m leaf_m for leaf [M, ...]."""
  if leaf.shape[0] == 1:  # one client: a fused multiply-add, no matmul
    return weights[0] * leaf[0]
  return jnp.tensordot(weights, leaf, axes=(0, 0))


def _float_zeros(tree: PyTree) -> PyTree:
  def zeros(leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise TypeError(
        f"a mean takes float messages, got a leaf of dtype {leaf.dtype}: "
        "choose a reducer made for this message"
      )
    return jnp.zeros(leaf.shape, leaf.dtype)

  return jax.tree.map(zeros, tree)


def _expand(weight: Array, like: Array) -> Array:
  return weight.reshape(weight.shape + (1,) * (like.ndim - weight.ndim))


def _nonzero(weight: Array) -> Array:
  return jnp.where(weight > 0, weight, jnp.ones_like(weight))


def _tree_add(a: PyTree, b: PyTree) -> PyTree:
  return jax.tree.map(jnp.add, a, b)
