"""FedTiny's rivals with moving or personal masks, against NumPy loops."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_pruning as oracles
import pytest
import tiny

from fedjax_het.algorithms import (
  fed_avg,
  fed_dst,
  fed_tiny,
  lottery_fl,
  masked_fed_avg,
  prune_fl,
)
from fedjax_het.algorithms._fed_dst import _Body
from fedjax_het.algorithms._moving_mask import Answer
from fedjax_het.core import rounds, wire
from fedjax_het.core.errors import UserError
from fedjax_het.masks.at_init import prune_at_init
from fedjax_het.masks.sparse_wire import SparseValues
from fedjax_het.selection import uniform

PRUNING = prune_at_init(
  tiny.mlp(), tiny.INPUT_SHAPE, density=0.4, by="magnitude"
)
LOCAL = dict(optimizer=optax.sgd(0.1), batch_size=federation.BATCH)


def masks(state):
  return [np.asarray(state.mask[name]) for name in ("first", "second")]


def _fed_dst(**options):
  settings = dict(
    num_clients=tiny.CLIENTS,
    epochs=2,
    epochs_after=3,
    adjust_every=2,
    adjust_until=5,
    share=0.6,
  )
  return fed_dst(tiny.mlp(), PRUNING, **LOCAL | settings | options)


def test_fed_dst_equals_the_loop():
  first, last, seen = federation.run(_fed_dst())
  want, mask = oracles.fed_dst(
    federation.weights(first.server.params),
    masks(first.server),
    tiny.data(),
    rate=0.1,
    epochs=2,
    after=3,
    rounds=3,
    every=2,
    until=5,
    share=0.6,
  )
  for got, was, expected in zip(
    masks(last.server), masks(first.server), mask, strict=True
  ):
    np.testing.assert_array_equal(got, expected)
    assert (got != was).any() and got.sum() == was.sum()
  federation.assert_close(last.server.params, want)
  # positions travel in the second round only: here both layers as bitmaps
  kept = sum(int(m.sum()) for m in mask)
  sizes = [m.size for m in mask]
  where = sum(4 + -(-size // 8) for size in sizes)
  up = [4 * kept, 4 * kept + where, 4 * kept]
  np.testing.assert_array_equal(
    np.stack([round.up_bytes for round in seen]),
    np.repeat(np.array(up)[:, None], tiny.CLIENTS, axis=1),
  )


def test_fed_dst_whose_masks_stay_is_masked_fed_avg():
  _, got, seen = federation.run(_fed_dst(adjust_until=0))
  _, want, others = federation.run(
    masked_fed_avg(tiny.mlp(), PRUNING, epochs=5, **LOCAL)
  )
  federation.assert_same(got.server.params, want.server.params)
  for ours, theirs in zip(seen, others, strict=True):
    np.testing.assert_array_equal(ours.up_bytes, theirs.up_bytes)
    np.testing.assert_array_equal(ours.steps, theirs.steps)
    np.testing.assert_allclose(
      ours.metrics["loss"], theirs.metrics["loss"], rtol=1e-5
    )


def test_fed_dst_server_ignores_who_does_not_hold_a_weight():
  """Two clients, hand-made uploads: means over holders, the largest stay."""
  algorithm = _fed_dst(adjust_every=1)
  state = algorithm.init(federation.KEY)
  kept = int(state.mask["second"].sum())
  flat = jnp.zeros(state.changed.shape)
  size = flat.size - state.mask["second"].size
  both = jnp.zeros(flat.shape, bool).at[:size].set(True)
  values = jnp.where(both, 1.0, 0.0)
  # of the second layer one client holds the first, the other the next weights
  a = both.at[size : size + kept].set(True)
  b = both.at[size + 1 : size + 1 + kept].set(True)
  total = jnp.stack([values.at[size].set(9.0), values.at[size + kept].set(8.0)])
  weights = jnp.asarray([1.0, 3.0])
  reducer = algorithm.reducer
  down = algorithm.downlink(state, jnp.int32(0))

  def answer(k, values, held):
    sparse = SparseValues(values, held, jnp.bool_(True), down.kept.sizes)
    who = wire.Known(jnp.int32(k), setup_bytes=8)
    return Answer(who, _Body(sparse, down.dense))

  one, two = answer(4, total[0], a), answer(2, total[1], b)
  stacked = jax.tree.map(lambda x, y: jnp.stack([x, y]), one, two)
  reduced = reducer.finish(reducer.add(reducer.zero(one), stacked, weights))
  np.testing.assert_array_equal(np.flatnonzero(reduced[0]), [2, 4])  # who came
  after = algorithm.server(state, reduced)
  second = np.asarray(after.params["second"]).ravel()
  # 9 is held by one alone: its mean is 9, not 9 / 4
  assert second[0] == 9.0 and second[kept] == 8.0
  assert np.asarray(after.mask["second"]).sum() == kept


def _prune_fl(**options):
  settings = dict(
    num_clients=tiny.CLIENTS,
    epochs=3,
    adjust_every=2,
    share=0.5,
    costs={"second": 2.5},
    fixed_cost=30.0,
  )
  return prune_fl(tiny.mlp(), PRUNING, **LOCAL | settings | options)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_prune_fl_equals_the_loop(share):
  first, last, seen = federation.run(_prune_fl(share=share))
  want, mask = oracles.prune_fl(
    federation.weights(first.server.params),
    masks(first.server),
    tiny.data(),
    rate=0.1,
    epochs=3,
    rounds=3,
    every=2,
    share=share,
    costs=(1.0, 2.5),
    fixed=30.0,
  )
  for got, expected in zip(masks(last.server), mask, strict=True):
    np.testing.assert_array_equal(got, expected)
  federation.assert_close(last.server.params, want)
  before, after = (
    sum(int(m.sum()) for m in each) for each in (masks(first.server), mask)
  )
  assert before != after > 0  # its size adapts
  total = sum(m.size for m in mask)
  for round, size in enumerate((4 * before, 4 * (before + total), 4 * after)):
    np.testing.assert_array_equal(seen[round].up_bytes, size)


def test_prune_fl_that_never_adapts_is_masked_fed_avg():
  _, got, _ = federation.run(_prune_fl(adjust_until=0))
  _, want, _ = federation.run(
    masked_fed_avg(tiny.mlp(), PRUNING, epochs=3, **LOCAL)
  )
  federation.assert_same(got.server.params, want.server.params)


def _fed_tiny():
  return fed_tiny(
    tiny.mlp(),
    PRUNING,
    num_clients=tiny.CLIENTS,
    adjust_every=1,
    adjust_until=5,
    share=0.6,
    blocks=2,
    epochs=3,
    **LOCAL,
  )


@pytest.mark.parametrize("make", [_fed_tiny, _fed_dst, _prune_fl])
def test_masks_move_alike_when_clients_train_in_chunks(make):
  """Under vmap both sides of every condition run; 7 clients in chunks of 3."""
  first, want, _ = federation.run(make(), federation.EVERYBODY[:2])
  block = rounds.make_block(
    rounds.make_round(make(), uniform(tiny.CLIENTS), chunk=3), 2
  )
  got, seen = jax.jit(block)(first, tiny.data())
  federation.assert_same(got.server, want.server, rtol=1e-4, atol=1e-5)
  assert (got.server.changed > 0).any()
  # the second round's downloads hold news after a first that moved the mask
  down = np.asarray(seen["rounds"].down_bytes)
  assert (down[1] > down[0]).all() == (make is _fed_tiny)


def _lottery_fl(**options):
  settings = dict(epochs=3, density=0.3, share=0.4, accuracy=0.35)
  return lottery_fl(tiny.mlp(), **LOCAL | settings | options)


def test_lottery_fl_equals_the_loop():
  first, last, seen = federation.run(_lottery_fl(), federation.COHORTS)
  want, mask = oracles.lottery_fl(
    federation.weights(first.server.params),
    tiny.data(),
    rate=0.1,
    epochs=3,
    cohorts=federation.COHORTS,
    density=0.3,
    share=0.4,
    accuracy=0.35,
  )
  federation.assert_close(last.server.params, want)
  flat = [np.concatenate([m.ravel() for m in own]) for own in mask]
  np.testing.assert_array_equal(last.clients, flat)
  densities = {m.mean().round(3) for m in flat}
  assert len(densities) > 2  # some pruned twice, some once, some not yet
  assert flat[0].all()  # client 0 never took part
  # the last cohort's uploads: values and positions, both layers as bitmaps
  where = sum(4 + -(-m.size // 8) for m in mask[0])
  np.testing.assert_array_equal(
    seen[-1].up_bytes,
    [4 * flat[k].sum() + where for k in federation.COHORTS[-1]],
  )


def test_lottery_fl_that_never_prunes_averages_as_fed_avg():
  """With equal weights: on clients of equal size it is FedAvg."""
  data = tiny.data()
  count = jnp.full_like(data.train.count, 3)
  data = data._replace(train=data.train._replace(count=count))
  _, got, _ = federation.run(_lottery_fl(accuracy=2.0), data=data)
  _, want, _ = federation.run(fed_avg(tiny.mlp(), epochs=3, **LOCAL), data=data)
  federation.assert_same(got.server.params, want.server.params, rtol=1e-4)


def test_wrong_settings_are_named():
  with pytest.raises(UserError, match="density 0, share 0.4"):
    _lottery_fl(density=0.0)
  with pytest.raises(UserError, match="did you mean 'second'"):
    _prune_fl(costs={"secnd": 1.0})
  with pytest.raises(UserError, match="share 2 is not"):
    _fed_dst(share=2.0)
