"""Three ways to average adapters of unequal ranks.

Every client's adapters are A [I, R] and B [R, O] at the largest rank R, zero
from the client's own rank r on; in the formulas w are weights that sum to 1.

count: each rank row by itself, over the clients that hold it (r > row):
  A_j = sum_i w_i A_ij [r_i > j] / sum_i w_i [r_i > j], B likewise; rows that
  nobody holds stay.  HetLoRA's zero padding with counts.
product: Delta = sum_i w_i A_i B_i, cut to rank R by its singular values,
  A = U, B = S V^T.  FlexLoRA.  Where a singular value is 0, A keeps its old
  column: a row of zeros in both factors would never learn again.
stack: the same Delta, as the product of the factors stacked to rank sum_i r_i,
  so that nothing is lost.  FLoRA.  The rank would grow with every round; to
  keep its shape, Delta is added to the base and everybody starts again from
  the first A and B = 0.  The server keeps the sum of all Deltas, and sends it
  whole: a client that was away has missed some of its parts.

The scale of the adapters is one number for all ranks, so that it drops out.

References:
  Cho et al.: HetLoRA, EMNLP 2024, arXiv:2401.06432.
  Bai et al.: FlexLoRA, NeurIPS 2024, arXiv:2402.11505.
  Wang et al.: FLoRA, NeurIPS 2024, arXiv:2409.05976.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.algorithms._kept_values import KeptValues
from fedjax_het.core import reduce, stack
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array, Params, PyTree, Reducer

AVERAGES = ("count", "product", "stack")


class Factors(NamedTuple):
  """adapters: name -> {"a": f32[I, R], "b": f32[R, O]}.

  moved: name -> f32[I, O], what was added to the base; () but for "stack".
  """

  adapters: Params
  moved: PyTree


class RankAverage(NamedTuple):
  """start: adapters -> Factors.

  reducer: over `KeptValues` of adapters.
  finish: (Factors, what the reducer gives) -> Factors.
  """

  start: Callable[[Params], Factors]
  reducer: Reducer
  finish: Callable[[Factors, PyTree], Factors]


def rank_average(name: str, capacity: int | None = None) -> RankAverage:
  """One of `AVERAGES`.

  Args:
    name: which.
    capacity: C, the size of the cohort; only "stack" needs it.

  Raises:
    UserError: an unknown name, or "stack" without a capacity.
  """
  if name not in AVERAGES:
    raise unknown("average of adapters", name, AVERAGES)
  if name == "count":
    return _count()
  if name == "product":
    return _product()
  if capacity is None:
    raise UserError(
      "the average 'stack' needs cohort_size, the clients a round"
    )
  return _stack(capacity)


def rank_mask(adapters: Params, rank: Array) -> PyTree:
  """bool tree like `adapters`: the first `rank` i32[] rows of each."""
  return {
    name: {
      "a": jnp.broadcast_to(jnp.arange(of["a"].shape[1]) < rank, of["a"].shape),
      "b": jnp.broadcast_to(
        (jnp.arange(of["b"].shape[0]) < rank)[:, None], of["b"].shape
      ),
    }
    for name, of in adapters.items()
  }


def split(delta: Array, old: Array) -> dict[str, Array]:
  """The best factors of rank R of f32[I, O], beside the old A f32[I, R].

  Each singular vector has its largest entry positive, so that equal products
  give equal factors.
  """
  u, size, vt = jnp.linalg.svd(delta, full_matrices=False)
  rank = old.shape[1]
  missing = max(rank - size.shape[0], 0)
  u, size, vt = u[:, :rank], size[:rank], vt[:rank]
  largest = jnp.argmax(jnp.abs(u), axis=0)
  flip = jnp.where(u[largest, jnp.arange(u.shape[1])] < 0, -1.0, 1.0)
  u, vt = u * flip[None], vt * flip[:, None]
  there = size > 1e-6 * jnp.maximum(size[0], 1e-30)
  a = jnp.where(there[None], u, old[:, : u.shape[1]])
  b = jnp.where(there[:, None], size[:, None] * vt, 0)
  return {
    "a": jnp.concatenate([a, old[:, rank - missing :]], 1),
    "b": jnp.pad(b, ((0, missing), (0, 0))),
  }


def stacked(adapters: Params, share: Array) -> dict[str, Array]:
  """sum_i share_i A_i B_i as one product of rank C R, name -> f32[I, O].

  Args:
    adapters: of C clients, {"a": f32[C, I, R], "b": f32[C, R, O]}.
    share: f32[C].
  """

  def one(of):
    clients, wide, rank = of["a"].shape
    a = of["a"].transpose(1, 0, 2).reshape(wide, clients * rank)
    b = of["b"] * share[:, None, None]
    return a @ b.reshape(clients * rank, -1)

  return {name: one(of) for name, of in adapters.items()}


def _count() -> RankAverage:
  pair = reduce.overlap_mean()

  def of(message):
    return message.values, message.mask

  reducer = Reducer(
    zero=lambda message: pair.zero(of(message)),
    add=lambda acc, messages, weights: pair.add(acc, of(messages), weights),
    merge=pair.merge,
    finish=pair.finish,
  )

  def finish(factors, reduced):
    mean, held = reduced
    return factors._replace(
      adapters=jax.tree.map(jnp.where, held, mean, factors.adapters)
    )

  return RankAverage(lambda adapters: Factors(adapters, ()), reducer, finish)


def _product() -> RankAverage:
  mean = reduce.weighted_mean()

  def products(message: KeptValues):
    return {
      name: of["a"] @ of["b"] for name, of in message.values.items()
    }  # [M, I, O]

  reducer = mean._replace(
    zero=lambda message: mean.zero(jax.eval_shape(products, message)),
    add=lambda acc, messages, weights: mean.add(
      acc, products(messages), weights
    ),
  )

  def finish(factors, delta):
    found = {
      name: split(delta[name], of["a"]) for name, of in factors.adapters.items()
    }
    return factors._replace(adapters=found)

  return RankAverage(lambda adapters: Factors(adapters, ()), reducer, finish)


def _stack(capacity: int) -> RankAverage:
  side_by_side = stack.stack(capacity)
  reducer = Reducer(
    zero=lambda message: side_by_side.zero(message.values),
    add=lambda acc, messages, weights: side_by_side.add(
      acc, messages.values, weights
    ),
    merge=side_by_side.merge,
    finish=side_by_side.finish,
  )

  def start(adapters):
    moved = {
      name: jnp.zeros((of["a"].shape[0], of["b"].shape[1]))
      for name, of in adapters.items()
    }
    return Factors(adapters, moved)

  def finish(factors, came):
    total = jnp.sum(came.weights)
    share = came.weights / jnp.where(total > 0, total, 1)
    delta = stacked(came.messages, share)
    return factors._replace(moved=jax.tree.map(jnp.add, factors.moved, delta))

  return RankAverage(start, reducer, finish)
