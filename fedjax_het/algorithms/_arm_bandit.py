"""An online bandit over (pruning ratio, rank): one for each client.

The arms are the points of a rectangle, the ratio along one side and the K rank
steps, each of length 1, along the other.  The rectangle is cut into leaves
R; with a_s the point of play s and x_s its reward, after t plays

  N_R = sum_s lambda^(t - s) [a_s in R],
  Q_R = sum_s lambda^(t - s) x_s [a_s in R] / N_R,

and the next point is uniform in the leaf of largest

  Q_R + c sqrt(2 ln(sum_R N_R) / N_R),

the first one of equals.  The leaf that was played is then cut in two at its
point, across the longer of its sides (as a share of the whole one) that is
still above its limit: `finest` of the ratio, one rank step.

This is a reconstruction: FedSpine's own bandit (S-UCB) was not available, and
this form follows E-UCB of the same group's FedMP as it is remembered.  Leaves
are closed: a point on a cut counts for both sides.  Otherwise the smaller side
of every cut would begin without a play and be played next, and the bandit would
dive into one corner after the other.

Everything has a fixed size, so that bandits live in the server state, under
jit, and are vmapped over clients: at most `leaves` leaves (a full table is cut
no more) and the last `memory` plays (older ones weigh below
lambda^memory = 0.001).  A play counts when its reward is known; clients that do
not take part keep their clock.

References:
  FedSpine: Efficient Deployment of Large Language Models on
  Resource-constrained Devices, 2025, arXiv:2501.02438.
  FedMP: Federated Learning through Adaptive Model Pruning in Heterogeneous
  Edge Computing, ICDE 2022.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key


class ArmSpace(NamedTuple):
  """What may be played, and how.

  ratios: the least and the largest pruning ratio, in [0, 1).
  ranks: the rank steps, increasing.
  discount: lambda;  explore: c.
  finest: the side of the ratio at which leaves are cut no more.
  memory: plays that are remembered;  leaves: the most leaves.
  """

  ratios: tuple[float, float] = (0.0, 0.7)
  ranks: tuple[int, ...] = (1, 2, 4, 8)
  discount: float = 0.95
  explore: float = 1.0
  finest: float = 0.05
  memory: int = 128
  leaves: int = 64


class Bandit(NamedTuple):
  """One client's.

  low, high: f32[leaves, 2], corners;  size: i32[], how many are in use.
  point: f32[memory, 2], reward: f32[memory], of the last plays, in a ring.
  plays: i32[], how many there were.
  arm: f32[2], the point that is being played;  leaf: i32[], where it lies.
  """

  low: Array
  high: Array
  size: Array
  point: Array
  reward: Array
  plays: Array
  arm: Array
  leaf: Array


def check_space(space: ArmSpace) -> None:
  """Raises a `UserError` for a space that has no arms."""
  low, high = space.ratios
  if not 0 <= low <= high < 1:
    raise UserError(
      f"pruning ratios {space.ratios}: give the least and the largest, in "
      "[0, 1)"
    )
  ranks = list(space.ranks)
  if not ranks or ranks[0] < 1 or sorted(set(ranks)) != ranks:
    raise UserError(f"ranks {ranks}: give numbers >= 1 in increasing order")
  if not (0 < space.discount <= 1 and space.explore >= 0 and space.finest > 0):
    raise UserError(
      f"discount {space.discount} in (0, 1], explore {space.explore} >= 0 and "
      f"finest {space.finest} > 0 are wanted"
    )
  if min(space.memory, space.leaves) < 1:
    raise UserError(
      f"memory {space.memory} and leaves {space.leaves}: give 1 or more"
    )


def start(space: ArmSpace, key: Key) -> Bandit:
  """No play yet and one leaf, the whole; its first point is drawn."""
  corner = jnp.asarray(
    [space.ratios, (0.0, float(len(space.ranks)))], jnp.float32
  )
  bandit = Bandit(
    jnp.tile(corner[:, 0], (space.leaves, 1)),
    jnp.tile(corner[:, 1], (space.leaves, 1)),
    jnp.int32(1),
    jnp.zeros((space.memory, 2)),
    jnp.zeros(space.memory),
    jnp.int32(0),
    jnp.zeros(2),
    jnp.int32(0),
  )
  return choose(space, bandit, key)


def choose(space: ArmSpace, bandit: Bandit, key: Key) -> Bandit:
  """Draws the next point from the leaf of the largest index."""
  leaf = jnp.argmax(indices(space, bandit)).astype(jnp.int32)
  low, high = bandit.low[leaf], bandit.high[leaf]
  drawn = low + jax.random.uniform(key, (2,)) * (high - low)
  return bandit._replace(arm=jnp.minimum(drawn, high), leaf=leaf)


def reward(space: ArmSpace, bandit: Bandit, value: Array) -> Bandit:
  """Notes what the point that is being played gave, and cuts its leaf."""
  place = bandit.plays % space.memory
  bandit = bandit._replace(
    point=bandit.point.at[place].set(bandit.arm),
    reward=bandit.reward.at[place].set(value),
    plays=bandit.plays + 1,
  )
  whole = _sides(space)
  side = bandit.high[bandit.leaf] - bandit.low[bandit.leaf]
  limit = jnp.asarray([space.finest, 1.0], jnp.float32)
  share = jnp.where(side > limit, side / jnp.maximum(whole, 1e-9), 0)
  axis = jnp.argmax(share)
  cut = (share[axis] > 0) & (bandit.size < space.leaves)
  across = jnp.arange(2) == axis
  # the lower half stays in place, the upper one comes behind the last leaf
  middle = jnp.where(across, bandit.arm, bandit.high[bandit.leaf])
  upper = jnp.where(across, bandit.arm, bandit.low[bandit.leaf])
  last = jnp.where(cut, bandit.size, space.leaves)  # beyond the end: dropped
  return bandit._replace(
    low=bandit.low.at[last].set(upper, mode="drop"),
    high=bandit.high.at[last]
    .set(bandit.high[bandit.leaf], mode="drop")
    .at[bandit.leaf]
    .set(jnp.where(cut, middle, bandit.high[bandit.leaf])),
    size=bandit.size + cut.astype(jnp.int32),
  )


def indices(space: ArmSpace, bandit: Bandit) -> Array:
  """f32[leaves]: of each leaf, inf if never played, -inf if not in use."""
  slot = jnp.arange(space.memory)
  # the play in this slot was so many plays ago; older ones were overwritten
  age = (bandit.plays - 1 - slot) % space.memory
  weight = jnp.where(
    slot < bandit.plays, space.discount ** age.astype(jnp.float32), 0
  )
  point = bandit.point[None]  # [1, memory, 2]
  inside = (bandit.low[:, None] <= point) & (point <= bandit.high[:, None])
  inside = jnp.all(inside, -1).astype(jnp.float32)  # [leaves, memory]
  used = jnp.arange(space.leaves) < bandit.size
  count = jnp.where(used, inside @ weight, 0)
  some = jnp.where(count > 0, count, 1)
  mean = inside @ (weight * bandit.reward) / some
  log = jnp.log(jnp.maximum(jnp.sum(count), 1))
  index = mean + space.explore * jnp.sqrt(2 * log / some)
  return jnp.where(used, jnp.where(count > 0, index, jnp.inf), -jnp.inf)


def arm_of(space: ArmSpace, bandit: Bandit) -> tuple[Array, Array]:
  """(ratio f32[], rank i32[]) of the point that is being played."""
  step = jnp.minimum(bandit.arm[1].astype(jnp.int32), len(space.ranks) - 1)
  return bandit.arm[0], jnp.asarray(space.ranks, jnp.int32)[step]


def _sides(space: ArmSpace) -> Array:
  """f32[2], the sides of the whole space."""
  low, high = space.ratios
  return jnp.asarray([high - low, len(space.ranks)], jnp.float32)
