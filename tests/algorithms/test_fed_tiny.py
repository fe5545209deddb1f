"""FedTiny against its NumPy loop; its mask, its bytes, its selection."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_pruning as oracles
import pytest
import tiny

from fedjax_het.algorithms import fed_tiny, masked_fed_avg
from fedjax_het.algorithms._fed_tiny import _block_table
from fedjax_het.core import cohort, wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Model
from fedjax_het.masks import sparse_wire, tree
from fedjax_het.masks.at_init import prune_at_init

SIZES = (tiny.FEATURES * tiny.HIDDEN, tiny.HIDDEN * tiny.CLASSES)
PRUNING = prune_at_init(
  tiny.mlp(), tiny.INPUT_SHAPE, density=0.4, by="magnitude"
)
LOCAL = dict(optimizer=optax.sgd(0.1), batch_size=federation.BATCH, epochs=3)


def make(**options):
  settings = dict(adjust_every=1, adjust_until=5, share=0.6, blocks=2)
  return fed_tiny(
    tiny.mlp(),
    PRUNING,
    num_clients=tiny.CLIENTS,
    **LOCAL | settings | options,
  )


def masks(state):
  return [np.asarray(state.mask[name]) for name in ("first", "second")]


def gradient_bytes(mask, moves):
  """What a_l gradients of each layer cost, by the header of the file."""
  if not any(moves):
    return 0
  width = [(size - 1).bit_length() for size in SIZES]
  where = sum(
    4 + -(-min(size, a * w) // 8)
    for size, a, w in zip(SIZES, moves, width, strict=True)
  )
  return 4 * sum(moves) + where


def test_it_equals_the_loop():
  first, last, _ = federation.run(make())
  want, mask, sent = oracles.fed_tiny(
    federation.weights(first.server.params),
    masks(first.server),
    tiny.data(),
    rate=0.1,
    epochs=3,
    rounds=3,
    every=1,
    until=5,
    share=0.6,
    blocks=[(1,), (0,)],  # output first
  )
  assert min(sent) > 0
  for got, expected in zip(masks(last.server), mask, strict=True):
    np.testing.assert_array_equal(got, expected)
  federation.assert_close(last.server.params, want)
  for was, now in zip(masks(first.server), mask, strict=True):
    assert (was != now).any() and was.sum() == now.sum()


def test_a_mask_that_never_moves_is_masked_fed_avg():
  still = make(adjust_until=0)
  plain = masked_fed_avg(tiny.mlp(), PRUNING, **LOCAL)
  _, got, seen = federation.run(still)
  _, want, others = federation.run(plain)
  federation.assert_same(got.server.params, want.server.params)
  for ours, theirs in zip(seen, others, strict=True):
    np.testing.assert_array_equal(ours.up_bytes, theirs.up_bytes)
    # and the number of the round
    np.testing.assert_array_equal(ours.down_bytes, theirs.down_bytes + 4)


def test_every_message_is_counted_as_it_is_written():
  """Clients that missed changes are sent what changed since they were here."""
  algorithm = make(adjust_until=100, share=0.2)
  step = jax.jit(algorithm.server)
  state = jax.jit(algorithm.init)(federation.KEY)
  data = tiny.data()
  kept = sum(int(m.sum()) for m in masks(state))
  cohorts = [[1, 2], [1, 3], [2, 3], [1, 4], [4, 5]]
  history, last_seen = [masks(state)], dict.fromkeys(range(tiny.CLIENTS), 0)
  full = sparse_wire.mask_nbytes(state.mask)

  @jax.jit
  def exchange(state, k, data):
    down = algorithm.downlink(state, k)
    key = jax.random.key(0)
    up = algorithm.client(down, (), cohort.client_data(data, k), key)
    return down, up

  for t, ids in enumerate(cohorts):
    uploads = []
    for k in ids:
      down, up = exchange(state, jnp.int32(k), data)
      for message in (down, up.message):
        written = wire.encode(message)
        assert len(written) == int(wire.nbytes(message))
        back = wire.decode(written, message)
        federation.assert_same(
          jax.tree.map(jnp.asarray, back), message, rtol=0, atol=0
        )
      # a receiver with the mask of its last visit ends with the present one
      old = jnp.concatenate([jnp.ravel(m) for m in history[last_seen[k]]])
      news = down.news.__class__(old, down.news.stale, SIZES)
      fresh = news.from_bytes(down.news.to_bytes())
      np.testing.assert_array_equal(fresh.kept, tree.ravel(state.mask))
      size = int(wire.nbytes(down)) - 4 * kept - 4
      assert (size == 0) == (last_seen[k] == t)
      assert size <= full
      assert int(wire.nbytes(up.message)) == 4 * kept + gradient_bytes(
        state.mask,
        [
          oracles.how_many(m, t + 1, share=0.2, until=100)
          if i == (t + 1) % 2
          else 0
          for i, m in enumerate(masks(state))
        ],
      )
      uploads.append(up)
      last_seen[k] = t
    messages = [upload.message for upload in uploads]
    weights = jnp.stack([upload.weight for upload in uploads])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *messages)
    reducer = algorithm.reducer
    total = reducer.add(reducer.zero(messages[0]), stacked, weights)
    state = step(state, reducer.finish(total))
    history.append(masks(state))


def test_layers_are_taken_in_the_order_of_their_numbers():
  """By default Dense_10 follows Dense_9; blocks go from output to input."""

  def init(key):
    del key
    return {f"Dense_{i}": jnp.zeros((2, 2)) for i in range(11)}

  table = _block_table(Model(init, None), 3, None)
  names = list(tree.layers(init(None)))
  blocks = [
    {n for n, on in zip(names, row, strict=True) if on} for row in table
  ]
  assert blocks == [
    {"Dense_8", "Dense_9", "Dense_10"},
    {"Dense_4", "Dense_5", "Dense_6", "Dense_7"},
    {"Dense_0", "Dense_1", "Dense_2", "Dense_3"},
  ]
  assert _block_table(Model(init, None), 1, None).all()


@pytest.mark.parametrize(
  "options, match",
  [
    ({"share": 1.5}, r"share 1.5 is not in \[0, 1\]"),
    ({"adjust_every": 0}, "adjust_every 0"),
    ({"order": ("first", "secnd")}, "did you mean 'second'"),
    ({"order": ("first",)}, "name each of first, second once"),
    ({"blocks": 0}, "ask for 1 block or more"),
  ],
)
def test_wrong_settings_are_named(options, match):
  with pytest.raises(UserError, match=match):
    make(**options)
