"""Oort: large losses on fast devices, with exploration and a pacer.

A client that took part has the score
  (min(u, q) - min u) / (max u - min u)  +  sqrt(0.1 ln t / t_k),
u = loss x examples its statistical utility, q the 90 % quantile of all u, t_k
the round of its last part; times (T / d_k)^2 where its duration d_k exceeds the
preferred duration T.  A share epsilon of the cohort explores clients never
seen, by their example counts; the rest is drawn in proportion to the score
among those above 5 % of the cut-off score.  T is the 30 % quantile of the
durations seen; every 20 rounds the pacer raises the quantile by 5 points if
the utility of the last 20 rounds is within 10 % of that of the 20 before, and
lowers it by 5 if it is 5 times off.

Departures from the release: a client reports its mean training loss, not the
root of the mean square; durations of clients never seen are unknown, not
registered beforehand; no blacklist; the pool of exploitation is not widened to
ten times its size; the pacer sums the utility of all uploads of a round, not of
the exploited ones.

References:
  Lai et al.: Oort: Efficient Federated Learning via Guided Participant
  Selection, OSDI 2021, arXiv:2010.06081; code: SymbioticLab/FedScale,
  thirdparty/oort/oort.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.clock import online
from fedjax_het.core.rounds import Selector
from fedjax_het.core.types import Array
from fedjax_het.selection._draw import (
  Memory,
  blank,
  remember,
  reported,
  rescale,
)
from fedjax_het.selection._uniform import check_cohort_size


class OortState(NamedTuple):
  """memory: of all clients;  duration: f32[N], seconds of its last part.

  quantile: f32[], of the preferred duration, in percent.
  window, before: f32[], utility of this window of rounds and of the last one.
  """

  memory: Memory
  duration: Array
  quantile: Array
  window: Array
  before: Array


def oort(
  cohort_size: int,
  *,
  explore: float = 0.9,
  decay: float = 0.98,
  explore_floor: float = 0.3,
  clip: float = 0.9,
  cutoff: float = 0.05,
  penalty: float = 2.0,
  quantile: float = 30.0,
  pacer_rounds: int = 20,
  pacer_step: float = 5.0,
) -> Selector:
  """Guided participant selection.

  Args:
    cohort_size: C.
    explore, decay, explore_floor: epsilon in round t (from 0) is
      max(explore decay^(t+1), explore_floor).
    clip: quantile at which utilities are cut.
    cutoff: share of the cut-off score that is still in the pool.
    penalty: exponent of T / d_k.
    quantile, pacer_rounds, pacer_step: of the preferred duration, see above.
  """

  def init(num_clients):
    return OortState(
      blank(num_clients),
      jnp.zeros(num_clients),
      jnp.float32(quantile),
      jnp.float32(0),
      jnp.float32(0),
    )

  def choose(key, state, data):
    check_cohort_size(cohort_size, data.num_clients)
    mine: OortState = state.selector
    here = online(data, state.seconds)
    seen = mine.memory.count > 0
    size = data.train.count.astype(jnp.float32)
    value = score(mine, size, state.round + 1, clip, penalty)
    epsilon = jnp.maximum(
      explore * decay ** (state.round + 1).astype(jnp.float32), explore_floor
    )
    num_new = (cohort_size * epsilon).astype(jnp.int32)
    num_known = cohort_size - num_new
    known = seen & here
    ranked = jnp.sort(jnp.where(known, value, 0), descending=True)
    bar = cutoff * ranked[jnp.minimum(num_known, value.shape[0] - 1)]
    exploit_key, explore_key = jax.random.split(key)
    known_rank = _rank(exploit_key, value, known & (value >= bar))
    new_rank = _rank(explore_key, size, ~seen & here)
    # first the planned numbers of both, then whoever is left, online first
    first = (known_rank < num_known) | (new_rank < num_new)
    tier = jnp.where(first, 0, jnp.where(here, 1, 2))
    clients = value.shape[0]
    order = tier * (clients + 1) + jnp.minimum(known_rank, new_rank)
    return jnp.argsort(order)[:cohort_size]

  def update_state(mine, cohort, round_number):
    memory = remember(mine.memory, cohort, round_number)
    duration = mine.duration
    if cohort.seconds is not None:
      known = duration[cohort.ids]  # of the offline nothing new is known
      seen = jnp.where(cohort.seconds > 0, cohort.seconds, known)
      duration = duration.at[cohort.ids].set(seen)
    window = mine.window + jnp.sum(reported(cohort) * cohort.weight)
    after = mine._replace(memory=memory, duration=duration, window=window)
    due = (round_number + 1) % pacer_rounds == 0
    moved = _pace(after, pacer_step, first=round_number < pacer_rounds)
    return jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, after)

  return Selector(choose, init, update_state)


def score(mine: OortState, size, now, clip, penalty) -> Array:
  """f32[N], meaningful for clients that were seen."""
  seen = mine.memory.count > 0
  utility = mine.memory.loss * size
  ordered = jnp.sort(jnp.where(seen, utility, jnp.inf))
  number = jnp.sum(seen)
  place = (number.astype(jnp.float32) * clip).astype(jnp.int32)
  top = ordered[jnp.clip(place, 0, jnp.maximum(number - 1, 0))]
  value = rescale(jnp.minimum(utility, top), seen)
  last = jnp.maximum(mine.memory.last + 1, 1).astype(jnp.float32)
  value = value + jnp.sqrt(0.1 * jnp.log(now.astype(jnp.float32)) / last)
  waits = jnp.sort(jnp.where(seen, mine.duration, jnp.inf))
  place = (number.astype(jnp.float32) * mine.quantile / 100).astype(jnp.int32)
  preferred = waits[jnp.clip(place, 0, jnp.maximum(number - 1, 0))]
  slow = (mine.duration > preferred) & (mine.quantile < 100)
  ratio = preferred / jnp.maximum(mine.duration, 1e-4)
  return value * jnp.where(slow, ratio**penalty, 1)


def _pace(mine: OortState, step: float, first: Array) -> OortState:
  """The end of a window: perhaps another quantile, and a new window."""
  change = jnp.abs(mine.window - mine.before)
  flat, sharp = change <= 0.1 * mine.before, change >= 5 * mine.before
  move = jnp.where(flat, step, jnp.where(sharp, -step, 0.0))
  quantile = jnp.clip(mine.quantile + jnp.where(first, 0, move), step, 100)
  return mine._replace(
    quantile=quantile, before=mine.window, window=jnp.zeros_like(mine.window)
  )


def _rank(key, weight, real) -> Array:
  """i32[N]: the place in a draw by weight among the real ones, N for others."""
  noise = jax.random.gumbel(key, weight.shape)
  score = jnp.log(jnp.maximum(weight, 1e-30)) + noise
  order = jnp.argsort(jnp.where(real, -score, jnp.inf))
  place = jnp.argsort(order)
  return jnp.where(real, place, weight.shape[0])
