"""Robust means: what a few liars send moves the result little.

Each is a `Reducer` that gives a tree like the message, as `weighted_mean` does,
so any algorithm with a mean becomes robust by
`with_reducer(algorithm, coordinate_median(cohort_size))`.  Every client that
arrives counts once, whatever weight it claims: who may choose its weight would
choose a large one.  Clients that were dropped are not there at all; nothing is
read from their place in the stack.

Memory is O(C P) (`core.stack`).  An upload beyond `cohort_size` makes every
value NaN, since no error can be raised inside a compiled round and silently
leaving out a client would be worse.

References:
  Yin et al.: Byzantine-Robust Distributed Learning: Towards Optimal Statistical
  Rates, ICML 2018, arXiv:1803.01498 (median, trimmed mean).
  Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, 2019,
  arXiv:1912.13445 (geometric median).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core import reduce, stack
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, PyTree, Reducer

# (tree of [C, ...], here bool[C], how many are here i32[]) -> tree of [...]
Rule = Callable[[PyTree, Array, Array], PyTree]


def with_reducer(algorithm: Algorithm, reducer: Reducer) -> Algorithm:
  """`algorithm` whose mean is taken by another rule.

  Args:
    algorithm: reduces by `weighted_mean`, or by `mean_and_weight`, whose
      weight it still gets.
    reducer: any that gives a tree like the message.

  Returns:
    An `Algorithm`.

  Raises:
    UserError: the algorithm takes no plain mean, e.g. it sums packed signs
      (one bounded vote a client already) or is differentially private (whose
      noise is measured for a mean).
  """
  if not reduce.gives_weight(algorithm.reducer):
    return algorithm._replace(reducer=reducer)

  def add(acc, messages, weights):
    inner, weight = acc
    return reducer.add(inner, messages, weights), weight + jnp.sum(weights)

  def merge(a, b):
    return reducer.merge(a[0], b[0]), a[1] + b[1]

  both = Reducer(
    zero=lambda message: (reducer.zero(message), jnp.float32(0)),
    add=add,
    merge=merge,
    finish=lambda acc: (reducer.finish(acc[0]), acc[1]),
  )
  return algorithm._replace(reducer=both)


def coordinate_median(cohort_size: int) -> Reducer:
  """The median of each coordinate; of an even number, the middle two's mean.

  Holds against fewer than half of the arrivals.

  Args:
    cohort_size: C.

  Returns:
    A `Reducer` over float messages; nobody at all gives zeros.
  """
  return robust_mean(
    cohort_size, lambda tree, here, n: _middle(tree, here, n, _half(n))
  )


def trimmed_mean(cohort_size: int, trim: float | int = 0.1) -> Reducer:
  """The mean of each coordinate without its largest and smallest values.

  Holds against at most as many clients as are cut on each side.

  Args:
    cohort_size: C.
    trim: a fraction f in [0, 0.5) cuts floor(f n) of the n arrivals on each
      side; a whole number k cuts k, or all but the median where n <= 2 k.

  Returns:
    A `Reducer` over float messages; nobody at all gives zeros.

  Raises:
    UserError: `trim` leaves nothing.
  """
  whole = isinstance(trim, int)
  if not 0 <= trim < (cohort_size / 2 if whole else 0.5):
    raise UserError(
      f"trim={trim} of a cohort of {cohort_size}: give a fraction below 0.5, "
      "or a whole number below half of the cohort, cut on each side"
    )
  cuts = np.asarray(  # by the number of arrivals, as Python rounds
    [
      min(trim, max(n - 1, 0) // 2) if whole else int(trim * n)
      for n in range(cohort_size + 1)
    ],
    np.int32,
  )
  return robust_mean(
    cohort_size,
    lambda tree, here, n: _middle(tree, here, n, jnp.asarray(cuts)[n]),
  )


def geometric_median(
  cohort_size: int, *, steps: int = 8, smoothing: float = 1e-6
) -> Reducer:
  """The point v with the least sum_k ||m_k - v||, over all leaves together.

  Weiszfeld's iteration: v is the mean with weights
  1 / max(||m_k - v||, smoothing).  It starts at the coordinate median where
  the paper starts at the mean: from there one huge message would take many
  steps to get away from.  Holds against fewer than half of the arrivals, who
  move it in proportion to the honest ones' spread.

  Args:
    cohort_size: C.
    steps: of the iteration; the paper takes 3.
    smoothing: the least distance, > 0.

  Returns:
    A `Reducer` over float messages; nobody at all gives zeros.
  """

  def rule(tree, here, n):
    def step(_, v):
      square = sum(
        _square(leaf - v_leaf[None])
        for leaf, v_leaf in zip(
          jax.tree.leaves(tree), jax.tree.leaves(v), strict=True
        )
      )
      near = 1 / jnp.maximum(jnp.sqrt(square), smoothing)
      return mean_of(tree, jnp.where(here, near, 0.0))

    start = _middle(tree, here, n, _half(n))
    return jax.lax.fori_loop(0, steps, step, start)

  return robust_mean(cohort_size, rule)


def robust_mean(cohort_size: int, rule: Rule) -> Reducer:
  """A reducer from a rule over the stacked messages.

  Args:
    cohort_size: C.
    rule: (tree of [C, ...], here bool[C], i32[] how many are here) -> tree;
      it must not depend on the order of the places, nor read those that are
      not here.

  Returns:
    A `Reducer` over float messages.
  """
  held = stack.stack(cohort_size)

  def zero(message):
    for leaf in jax.tree.leaves(message):
      if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise UserError(
          f"a robust mean takes float messages, got a leaf of {leaf.dtype}: "
          "packed signs are bounded votes already, keep their own reducer"
        )
    return held.zero(message)

  def finish(acc):
    fits = acc.count <= cohort_size
    result = rule(acc.messages, acc.here, jnp.minimum(acc.count, cohort_size))
    return jax.tree.map(lambda r: jnp.where(fits, r, jnp.nan), result)

  return held._replace(zero=zero, finish=finish)


def mean_of(tree: PyTree, weights: Array) -> PyTree:
  """sum_k w_k m_k / sum_k w_k over [C, ...]; what has weight 0 is not read."""
  total = jnp.sum(weights)
  total = jnp.where(total > 0, total, 1.0)

  def mean(leaf):
    share = (weights / total).astype(leaf.dtype)
    share = share.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.sum(jnp.where(share > 0, share * leaf, 0), axis=0)

  return jax.tree.map(mean, tree)


def _half(n: Array) -> Array:
  """How many to cut on each side so that the median is left, i32[]."""
  return jnp.maximum(n - 1, 0) // 2


def _middle(tree: PyTree, here: Array, n: Array, cut: Array) -> PyTree:
  """The mean of each coordinate's sorted values number cut to n - cut - 1."""
  place = jnp.arange(here.shape[0])
  kept = (place >= cut) & (place < n - cut)
  size = jnp.maximum(n - 2 * cut, 1)

  def middle(leaf):
    def along(mask):
      return mask.reshape(-1, *[1] * (leaf.ndim - 1))

    ordered = jnp.sort(jnp.where(along(here), leaf, jnp.inf), axis=0)
    total = jnp.sum(jnp.where(along(kept), ordered, 0), axis=0)
    return total / size.astype(leaf.dtype)

  return jax.tree.map(middle, tree)


def _square(leaf: Array) -> Array:
  """||leaf_k||^2 of [C, ...] in float32, f32[C]."""
  leaf = leaf.astype(jnp.float32).reshape(leaf.shape[0], -1)
  return jnp.sum(jnp.square(leaf), axis=1)
