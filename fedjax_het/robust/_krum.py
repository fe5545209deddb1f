"""Krum and Multi-Krum: keep the messages that lie among many others.

The rule trusts agreement.  Honest clients with unlike data (non-IID) do not
agree, and those that stand alone are never chosen, round after round;
Multi-Krum with a large m is gentler (docs/robustness_and_privacy.md has
figures).

References:
  Blanchard et al.: Machine Learning with Adversaries: Byzantine Tolerant
  Gradient Descent, NeurIPS 2017, arXiv:1703.02757.
"""

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, PyTree, Reducer
from fedjax_het.robust import rules


def krum(cohort_size: int, num_malicious: int, *, multi: int = 1) -> Reducer:
  """The mean of the `multi` messages of the smallest score.

  With n arrivals and f liars among them, the score of a message is the sum of
  its squared distances to the n - f - 2 others that are nearest, all leaves
  together.  Dropped uploads make n smaller; at least one neighbour is counted.

  It costs O(C^2 P); distances are differences squared, not inner products,
  which would cancel when messages are close.

  Args:
    cohort_size: C, at least 2 f + 3.
    num_malicious: f, the most liars that a cohort can hold.
    multi: m; 1 is Krum, more is Multi-Krum, C with f = 0 the unweighted mean.

  Returns:
    A `Reducer` over float messages; nobody at all gives zeros.

  Raises:
    UserError: the cohort is too small for f, or has no m messages.
  """
  if num_malicious < 0 or cohort_size < 2 * num_malicious + 3:
    raise UserError(
      f"Krum against {num_malicious} malicious clients needs a cohort of "
      f"2 x {num_malicious} + 3 or more, got {cohort_size}: choose larger "
      "cohorts or assume fewer liars"
    )
  if not 1 <= multi <= cohort_size:
    raise UserError(f"multi={multi}: choose 1 to {cohort_size} messages")

  def rule(tree, here, n):
    score = scores(tree, here, jnp.maximum(n - num_malicious - 2, 1))
    rank = jnp.argsort(jnp.argsort(score))
    chosen = here & (rank < multi)
    return rules.mean_of(tree, chosen.astype(jnp.float32))

  return rules.robust_mean(cohort_size, rule)


def scores(tree: PyTree, here: Array, neighbours: Array) -> Array:
  """Sums of squared distances to the nearest others.

  Args:
    tree: messages [C, ...].
    here: bool[C], which of them are real.
    neighbours: i32[], how many of the nearest to sum.

  Returns:
    f32[C], finite where `here`, else infinite.
  """
  size = here.shape[0]
  place = jnp.arange(size)

  def from_one(i):
    square = jnp.zeros(size)
    for leaf in jax.tree.leaves(tree):
      apart = (leaf - leaf[i][None]).astype(jnp.float32)
      square += jnp.sum(jnp.square(apart).reshape(size, -1), axis=1)
    return jnp.where(here & (place != i), square, jnp.inf)

  nearest = jnp.sort(jax.lax.map(from_one, place), axis=1)
  counted = (place < neighbours)[None]
  score = jnp.sum(jnp.where(counted, nearest, 0), axis=1)
  # a lonely message must still come before an empty place
  score = jnp.minimum(score, jnp.finfo(jnp.float32).max)
  return jnp.where(here, score, jnp.inf)
