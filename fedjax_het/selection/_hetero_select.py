"""HeteRo-Select-style selection: loss, diversity, fairness and staleness.

In round t of T client k is drawn, without replacement, with probability
softmax(S / tau)_k, tau = 1 - t / (2 T), where S is this sum put onto [0, 1]:

  minmax(loss_k)                                             utility
  + 0.3 clip(1 - cos(g_k, g), 0, 1), 0.5 if never seen       diversity
  + 0.2 clip(1 - count_k / mean count, -1, 1)                fairness
  + 0.2 minmax(ln(1 + rounds since its part) / 2)            staleness

g_k is the client's last update, g an average of the aggregates that keeps 0.9
of itself.  The cosine is taken between random sketches of 256 numbers.

The name covers two methods: the abstract of 2508.06692 is of version 1, whose
formulas were not found; this is the score of version 2 (official code,
heteroselect/scoring.py), used for selection alone.  Two terms that version 1
is said to have are optional: `momentum`, minmax of the drop of a client's loss,
and `norm`, 1 / (1 + |g_k|^2).  Version 2 asks every client for its loss in
every round (`loss=fresh_loss(..., max_batches=8)`; those downloads are
counted); with `loss=None` the last reported loss is taken, and clients never
seen have utility 1.

Reference: HeteRo-Select, 2025, arXiv:2508.06692.
"""

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_het.core.clock import online
from fedjax_het.core.errors import UserError
from fedjax_het.core.rounds import EVERYBODY, Selector
from fedjax_het.core.types import Array
from fedjax_het.selection._draw import (
  Memory,
  blank,
  gumbel_top,
  remember,
  reported,
  rescale,
  update,
)
from fedjax_het.selection._fresh_loss import FreshLoss
from fedjax_het.selection._sketch import sketch
from fedjax_het.selection._uniform import check_cohort_size


class HeteroSelectState(NamedTuple):
  """memory: of all clients;  drop: f32[N], of its loss at its last part.

  update: f32[N, D], sketches of the last updates;  aggregate: f32[D], of g.
  """

  memory: Memory
  drop: Array
  update: Array
  aggregate: Array


class Weights(NamedTuple):
  """What the terms beside the utility count."""

  diversity: float
  fairness: float
  staleness: float
  momentum: float
  norm: float


def hetero_select(
  cohort_size: int,
  num_rounds: int,
  *,
  diversity: float = 0.3,
  fairness: float = 0.2,
  staleness: float = 0.2,
  momentum: float = 0.0,
  norm: float = 0.0,
  loss: FreshLoss | None = None,
  sketch_size: int = 256,
) -> Selector:
  """Scored selection with a falling temperature.

  Args:
    cohort_size: C.
    num_rounds: T, of the whole run; the temperature stays at 1/2 after it.
    diversity, fairness, staleness, momentum, norm: weights of the terms.
    loss: see above.
    sketch_size: D.

  Raises:
    UserError: num_rounds below 1.
  """
  if num_rounds < 1:
    raise UserError(f"num_rounds must be at least 1, got {num_rounds}")

  weights = Weights(diversity, fairness, staleness, momentum, norm)

  def init(num_clients):
    return HeteroSelectState(
      blank(num_clients),
      jnp.zeros(num_clients),
      jnp.zeros((num_clients, sketch_size)),
      jnp.zeros(sketch_size),
    )

  def utility(state, data):
    memory = state.selector.memory
    if loss is None:
      seen = memory.count > 0
      return jnp.where(seen, rescale(memory.loss, seen), 1)
    values = loss(state, data, jnp.arange(data.num_clients))
    return rescale(values, jnp.isfinite(values))

  def choose(key, state, data):
    check_cohort_size(cohort_size, data.num_clients)
    progress = state.round.astype(jnp.float32) / num_rounds
    temperature = 1 - 0.5 * jnp.minimum(progress, 1)
    return gumbel_top(
      key,
      score(state.selector, utility(state, data), state.round, weights)
      / temperature,
      cohort_size,
      online(data, state.seconds),
    )

  def update_state(mine, cohort, round_number):
    share = cohort.weight / _positive(jnp.sum(cohort.weight))
    mean = share @ cohort.seen
    first = mine.memory.count[cohort.ids] == 0
    drop = mine.memory.loss[cohort.ids] - reported(cohort)
    return HeteroSelectState(
      remember(mine.memory, cohort, round_number),
      update(mine.drop, cohort, jnp.where(first, 0, drop)),
      update(mine.update, cohort, cohort.seen),
      jnp.where(
        jnp.any(cohort.ok), 0.9 * mine.aggregate + 0.1 * mean, mine.aggregate
      ),
    )

  return Selector(
    choose,
    init,
    update_state,
    observe=lambda message: sketch(message, sketch_size),
    probes=0 if loss is None else EVERYBODY,
  )


def score(
  mine: HeteroSelectState,
  utility: Array,
  round_number: Array,
  weights: Weights,
) -> Array:
  """S f32[N] on [0, 1], see above."""
  memory = mine.memory
  seen = memory.count > 0
  cosine = (
    mine.update
    @ mine.aggregate
    / _positive(
      jnp.linalg.norm(mine.update, axis=1) * jnp.linalg.norm(mine.aggregate)
    )
  )
  distance = jnp.where(seen, jnp.clip(1 - cosine, 0, 1), 0.5)
  count = memory.count.astype(jnp.float32)
  fair = jnp.clip(1 - count / _positive(jnp.mean(count)), -1, 1)
  waited = (round_number - memory.last).astype(jnp.float32)
  everybody = jnp.ones_like(seen)
  total = (
    utility
    + weights.diversity * distance
    + weights.fairness * fair
    + weights.staleness * rescale(jnp.log1p(waited) / 2, everybody)
    + weights.momentum * jnp.where(seen, rescale(mine.drop, seen), 0)
    + weights.norm / (1 + jnp.sum(mine.update**2, axis=1))
  )
  return rescale(total, everybody)


def _positive(value: Array) -> Array:
  return jnp.where(value > 0, value, 1)
