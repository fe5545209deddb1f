"""FedSpine's server: what clients report, what it is worth, who plays what.

Shape legend: N clients, M clients in a chunk, G heads and channels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import _arm_bandit as bandit
from fedjax_het.algorithms._arm_bandit import ArmSpace
from fedjax_het.core import wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key, Params, PyTree, Reducer


class Costs(NamedTuple):
  """The simulated price of a client's round, T = a work + b bytes.

  step_seconds: f32[N], a, one local step of the whole network at the largest
    rank.
  byte_seconds: f32[N], b, one byte, up or down.
  """

  step_seconds: Array
  byte_seconds: Array


class Told(NamedTuple):
  """What travels down.

  known: (client, base, costs, random scores), nothing of which travels.
  ratio: f32[], rank: i32[], of this client;  round: i32[].
  adapters: at its rank;  moved: what "stack" added to the base, or ().
  full: what is trained whole.
  """

  known: wire.Known
  ratio: Array
  rank: Array
  round: Array
  adapters: PyTree
  moved: PyTree
  full: Params


class Report(NamedTuple):
  """A client's scalars, f32[] each.

  drop: mean loss of the first half of its steps less that of the second.
  gained: by how much its share of removed units rose.
  retained: the share of importance that its cuts left.
  seconds: T.
  """

  drop: Array
  gained: Array
  retained: Array
  seconds: Array


class Policy(NamedTuple):
  """Who plays which (ratio, rank).

  start: key -> state.
  arm: (state, client i32[]) -> (ratio f32[], rank i32[]).
  update: (state, rewards f32[N], took part bool[N], key) -> state.
  max_rank: R.
  """

  start: Callable[[Key], PyTree]
  arm: Callable[[PyTree, Array], tuple[Array, Array]]
  update: Callable[[PyTree, Array, Array, Key], PyTree]
  max_rank: int


def arms_of(
  arms: ArmSpace | Sequence[tuple[float, int]], num_clients: int
) -> Policy:
  """A bandit for each client, or fixed pairs dealt in turn.

  Raises:
    UserError: no arms, a ratio outside [0, 1) or a rank below 1.
  """
  if isinstance(arms, ArmSpace):
    bandit.check_space(arms)
    return _bandits(arms, num_clients)
  pairs = [(float(ratio), int(rank)) for ratio, rank in arms]
  if not pairs or any(not 0 <= p < 1 or r < 1 for p, r in pairs):
    raise UserError(
      f"arms {pairs}: give at least one (ratio in [0, 1), rank >= 1), or an "
      "ArmSpace"
    )
  ratios, ranks = zip(*pairs, strict=True)

  def arm(state, client):
    del state
    place = client % len(pairs)
    return (
      jnp.asarray(ratios, jnp.float32)[place],
      jnp.asarray(ranks, jnp.int32)[place],
    )

  return Policy(
    lambda key: (), arm, lambda state, *_: state, max_rank=max(ranks)
  )


def rewards(
  report: Report, took: Array, *, progress: float = 1.0, delay: float = 1.0
) -> Array:
  """What each client's arm was worth, f32[N], in [-1, 2].

  (drop / mean |drop|) (1 + kappa gained) retained - mu |T - median| / median,
  mean and median over those who took part.  The mean is that of sizes: where
  some losses rise, the plain mean may be 0 or turn every sign.

  Args:
    report: f32[N] each;  took: bool[N].
    progress: kappa;  delay: mu.
  """
  count = jnp.maximum(jnp.sum(took), 1).astype(jnp.float32)
  size = jnp.sum(jnp.where(took, jnp.abs(report.drop), 0)) / count
  gain = report.drop / jnp.where(size > 0, size, 1)
  gain = gain * (1 + progress * report.gained) * report.retained
  median = _median(report.seconds, took)
  late = jnp.abs(report.seconds - median) / jnp.where(median > 0, median, 1)
  return jnp.clip(gain - delay * late, -1, 2)


def gather(num_clients: int, units: int) -> Reducer:
  """Puts reports and structures into their clients' places.

  Returns:
    A `Reducer` over (client i32[], `Report`, bits u8[ceil(G / 8)]); `finish`
    gives (came f32[N], 1 where a client took part, `Report` of f32[N],
    structures f32[N, G]), zeros where nothing came.
  """

  def zero(message):
    _, report, _ = message
    return (
      jnp.zeros(num_clients),
      jax.tree.map(lambda leaf: jnp.zeros(num_clients), report),
      jnp.zeros((num_clients, units)),
    )

  def add(acc, messages, weights):
    client, report, note = messages
    bits = jnp.unpackbits(note, axis=-1, count=units).astype(jnp.float32)
    here = (weights > 0).astype(jnp.float32)
    came = here, jax.tree.map(lambda r: r * here, report), bits * here[:, None]
    return jax.tree.map(lambda a, b: a.at[client].add(b), acc, came)

  return Reducer(
    zero, add, lambda a, b: jax.tree.map(jnp.add, a, b), lambda acc: acc
  )


def check_costs(costs: Costs) -> int:
  """N.

  Raises:
    UserError: arrays of different lengths, or a cost below 0.
  """
  step, byte = (np.asarray(cost) for cost in costs)
  if step.ndim != 1 or step.shape != byte.shape or not step.size:
    raise UserError(
      f"costs of shapes {step.shape} and {byte.shape}: give both for every "
      "client"
    )
  if not (np.isfinite(step).all() and np.isfinite(byte).all()):
    raise UserError("costs that are not finite: give seconds")
  if min(step.min(), byte.min()) < 0:
    raise UserError("costs below 0: give seconds a step and seconds a byte")
  return step.size


def _bandits(space: ArmSpace, num_clients: int) -> Policy:
  clients = jnp.arange(num_clients)

  def start(key):
    return jax.vmap(lambda k: bandit.start(space, _draw(key, k, jnp.int32(0))))(
      clients
    )

  def arm(state, client):
    return bandit.arm_of(space, jax.tree.map(lambda leaf: leaf[client], state))

  def update(state, values, took, key):
    def one(own, k, value, here):
      after = bandit.reward(space, own, value)
      after = bandit.choose(space, after, _draw(key, k, after.plays))
      return jax.tree.map(
        lambda new, old: jnp.where(here, new, old), after, own
      )

    return jax.vmap(one)(state, clients, values, took)

  return Policy(start, arm, update, max_rank=max(space.ranks))


def _draw(key: Key, client: Array, play: Array) -> Key:
  return jax.random.fold_in(jax.random.fold_in(key, client), play)


def _median(values: Array, here: Array) -> Array:
  """f32[]: of those where `here`; 0 of none."""
  ranked = jnp.sort(jnp.where(here, values, jnp.inf))
  count = jnp.sum(here, dtype=jnp.int32)
  below = ranked[jnp.maximum(count - 1, 0) // 2]
  above = ranked[jnp.minimum(count // 2, values.shape[0] - 1)]
  return jnp.where(count > 0, (below + above) / 2, 0)
