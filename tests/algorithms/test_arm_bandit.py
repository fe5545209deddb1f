"""The bandit against a slow list of leaves and plays, and on easy problems."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.algorithms import _arm_bandit as bandit
from fedjax_het.core.errors import UserError


class Slow:
  """The definition: every play is kept, every sum is over all of them."""

  def __init__(self, space):
    self.space, self.plays = space, []  # (point, reward)
    top = len(space.ranks)
    self.whole = (
      [np.float32(space.ratios[0]), 0.0],
      [
        np.float32(space.ratios[1]),
        float(top),
      ],
    )
    self.leaves = [self.whole]

  def choose(self, uniform):
    counts, means = [], []
    for low, high in self.leaves:
      count = total = 0.0
      for s, (point, gain) in enumerate(self.plays):
        near = zip(low, point, high, strict=True)
        if all(least <= value <= most for least, value, most in near):
          weight = self.space.discount ** (len(self.plays) - 1 - s)
          count, total = count + weight, total + weight * gain
      counts.append(count)
      means.append(total / count if count else 0.0)
    log = math.log(max(sum(counts), 1.0))
    index = [
      mean + self.space.explore * math.sqrt(2 * log / count)
      if count
      else math.inf
      for mean, count in zip(means, counts, strict=True)
    ]
    self.leaf = int(np.argmax(index))
    low, high = self.leaves[self.leaf]
    low, high = np.float32(low), np.float32(high)
    self.arm = (low + np.float32(uniform) * (high - low)).tolist()
    return index

  def reward(self, value):
    self.plays.append((self.arm, value))
    low, high = self.leaves[self.leaf]
    limit, shares = (self.space.finest, 1.0), []
    for axis in range(2):
      side = high[axis] - low[axis]
      whole = self.whole[1][axis] - self.whole[0][axis]
      shares.append(side / whole if side > limit[axis] else 0.0)
    axis = 0 if shares[0] >= shares[1] else 1
    if shares[axis] > 0 and len(self.leaves) < self.space.leaves:
      left, right = list(high), list(low)
      left[axis] = right[axis] = self.arm[axis]
      self.leaves[self.leaf] = (low, left)
      self.leaves.append((right, high))


@pytest.mark.parametrize("leaves, explore", [(64, 1.0), (9, 0.2)])
def test_it_is_the_definition(leaves, explore):
  space = bandit.ArmSpace(leaves=leaves, explore=explore)
  keys = jax.random.split(jax.random.key(3), 60)
  slow, rng = Slow(space), np.random.default_rng(0)
  slow.choose(np.asarray(jax.random.uniform(keys[0], (2,))))
  fast = bandit.start(space, keys[0])
  step = jax.jit(
    lambda b, v, k: bandit.choose(space, bandit.reward(space, b, v), k)
  )
  for key in keys[1:]:
    np.testing.assert_allclose(fast.arm, slow.arm, atol=1e-5)
    assert int(fast.leaf) == slow.leaf
    value = float(np.float32(1 - abs(slow.arm[0] - 0.5) + 0.3 * rng.normal()))
    slow.reward(value)
    index = slow.choose(np.asarray(jax.random.uniform(key, (2,))))
    fast = step(fast, jnp.float32(value), key)
    size = int(fast.size)
    assert size == len(slow.leaves)
    np.testing.assert_allclose(
      bandit.indices(space, fast)[:size], index, rtol=1e-3, atol=1e-4
    )
  assert 8 < size <= leaves


def _last_plays(space, worth, plays=150):
  """bool[20, 50]: whether the last plays of 20 bandits were good ones."""

  def one(key):
    def step(own, k):
      noise, draw = jax.random.split(k)
      good = worth(own.arm)
      value = jnp.where(good, 1.0, 0.0) + 0.2 * jax.random.normal(noise)
      return bandit.choose(space, bandit.reward(space, own, value), draw), good

    keys = jax.random.split(key, plays)
    return jax.lax.scan(step, bandit.start(space, key), keys)[1]

  runs = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20))
  return np.asarray(runs)[:, -50:]


def test_it_finds_the_better_region():
  """A fifth of the ratios is good: a blind player is there 20 % of the time."""
  space = bandit.ArmSpace(ratios=(0.0, 0.5), explore=0.1)
  found = _last_plays(space, lambda arm: arm[0] > 0.4)
  assert found.mean() > 0.6
  blind = _last_plays(space._replace(explore=1e3), lambda arm: arm[0] > 0.4)
  assert blind.mean() < 0.4


def test_it_finds_the_better_rank():
  space = bandit.ArmSpace(ranks=(2, 8), ratios=(0.3, 0.3), explore=0.1)
  found = _last_plays(space, lambda arm: arm[1] > 1)
  assert found.mean() > 0.7


def test_leaves_tile_the_space_and_ranks_are_allowed():
  space = bandit.ArmSpace(ranks=(1, 4, 16), ratios=(0.2, 0.7))

  def step(own, key):
    ratio, rank = bandit.arm_of(space, own)
    after = bandit.reward(space, own, jnp.sin(9 * ratio))
    return bandit.choose(space, after, key), (ratio, rank)

  own, (ratio, rank) = jax.jit(
    lambda key: jax.lax.scan(
      step, bandit.start(space, key), jax.random.split(key, 200)
    )
  )(jax.random.key(1))
  assert set(np.asarray(rank).tolist()) == {1, 4, 16}
  assert 0.2 <= ratio.min() and ratio.max() <= 0.7
  size = int(own.size)
  sides = np.asarray(own.high - own.low, np.float64)[:size]
  assert (sides >= 0).all()
  np.testing.assert_allclose(sides.prod(1).sum(), 0.5 * 3, rtol=1e-4)
  points = np.random.default_rng(0).uniform((0.2, 0), (0.7, 3), (50, 2))
  low, high = np.asarray(own.low)[:size], np.asarray(own.high)[:size]
  inside = (low[:, None] < points).all(-1) & (points < high[:, None]).all(-1)
  np.testing.assert_array_equal(inside.sum(0), 1)


def test_old_plays_are_forgotten_when_the_ring_is_full():
  space = bandit.ArmSpace(memory=4, leaves=1, discount=0.5)
  own = bandit.start(space, jax.random.key(0))
  for value in (9.0, 9.0, 1.0, 2.0, 3.0, 4.0):
    own = bandit.reward(space, own, jnp.float32(value))
  weights = 0.5 ** np.arange(4)
  mean = (weights * [4, 3, 2, 1]).sum() / weights.sum()
  bonus = math.sqrt(2 * math.log(weights.sum()) / weights.sum())
  index = bandit.indices(space, own)[0]
  np.testing.assert_allclose(index, mean + bonus, rtol=1e-5)


@pytest.mark.parametrize(
  "change, match",
  [
    ({"ratios": (0.5, 0.2)}, "least and the largest"),
    ({"ratios": (0.5, 1.0)}, "least and the largest"),
    ({"ranks": (4, 2)}, "increasing"),
    ({"ranks": ()}, "increasing"),
    ({"discount": 0.0}, "discount"),
    ({"leaves": 0}, "leaves"),
  ],
)
def test_spaces_without_arms(change, match):
  with pytest.raises(UserError, match=match):
    bandit.check_space(bandit.ArmSpace()._replace(**change))
