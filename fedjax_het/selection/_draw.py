"""What the selectors share: weighted draws, and what they remember."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.cohort import Cohort
from fedjax_het.core.errors import unknown
from fedjax_het.core.types import Array, Key


def gumbel_top(
  key: Key, log_weight: Array, size: int, online: Array | None = None
) -> Array:
  """Draws `size` of N without replacement, one after another by weight.

  The largest of log w_k + Gumbel noise are such a draw (Efraimidis and
  Spirakis; Kool et al. 2019, arXiv:1903.06059).

  Args:
    key: of the noise.
    log_weight: f32[N]; below -1e4 is drawn only when nothing else is left.
    size: how many.
    online: bool[N]; who is offline comes after everybody else.

  Returns:
    i32[size], distinct, in the order drawn.
  """
  noise = jax.random.gumbel(key, log_weight.shape)
  score = jnp.maximum(log_weight + noise, -1e4)
  if online is not None:
    score = jnp.where(online, score, noise - 2e4)
  return jax.lax.top_k(score, size)[1]


def rescale(values: Array, real: Array) -> Array:
  """(v - min) / (max - min) over the real ones; 0 where all are equal."""
  low = jnp.min(jnp.where(real, values, jnp.inf))
  high = jnp.max(jnp.where(real, values, -jnp.inf))
  span = high - low
  usable = jnp.isfinite(span) & (span > 0)
  return jnp.where(usable, (values - low) / jnp.where(usable, span, 1), 0)


class Memory(NamedTuple):
  """What was seen of each client.

  loss: f32[N], the last that it reported; 0 before that.
  last: i32[N], the last round that it was chosen in, -1 for none.
  count: i32[N], how often it was chosen.
  """

  loss: Array
  last: Array
  count: Array


def blank(num_clients: int) -> Memory:
  """Nothing seen yet."""
  return Memory(
    jnp.zeros(num_clients),
    jnp.full(num_clients, -1),
    jnp.zeros(num_clients, jnp.int32),
  )


def remember(memory: Memory, cohort: Cohort, round_number: Array) -> Memory:
  """`memory` after a round; whoever was dropped keeps its last loss.

  Raises:
    UserError: the algorithm reports no metric "loss".
  """
  return Memory(
    update(memory.loss, cohort, reported(cohort)),
    memory.last.at[cohort.ids].set(round_number),
    memory.count.at[cohort.ids].add(1),
  )


def reported(cohort: Cohort) -> Array:
  """f32[C]: the loss that each client reported."""
  if "loss" not in cohort.metrics:
    raise unknown("metric that this selection needs", "loss", cohort.metrics)
  return cohort.metrics["loss"]


def update(old: Array, cohort: Cohort, new: Array) -> Array:
  """`old` [N, ...] with `new` [C, ...] of those whose upload counted."""
  ok = cohort.ok.reshape(cohort.ok.shape + (1,) * (new.ndim - 1))
  return old.at[cohort.ids].set(jnp.where(ok, new, old[cohort.ids]))
