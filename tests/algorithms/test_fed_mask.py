"""FedMask against a float64 loop, and the identities that bound it."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import tiny

from fedjax_het.algorithms import fed_mask, hide_n_seek
from fedjax_het.core import rounds, wire
from fedjax_het.core.errors import UserError
from fedjax_het.masks import tree
from fedjax_het.masks.at_init import prune_at_init
from fedjax_het_kernels import pack_bits, unpack_bits

RATE, EPOCHS = 0.1371, 6  # no sum of steps ends within float32 of a threshold
SIZES = [tiny.FEATURES * tiny.HIDDEN, tiny.HIDDEN * tiny.CLASSES]
TOTAL = sum(SIZES)
LOCAL = dict(
  optimizer=optax.adam(RATE),
  num_clients=tiny.CLIENTS,
  batch_size=federation.BATCH,
  epochs=EPOCHS,
)


def largest(scores, count):
  """Flags the largest scores, the lower position first at ties."""
  flags = np.zeros(scores.size, bool)
  flags[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
  return flags.reshape(scores.shape)


def half_the_weights(scores):
  """54 of 108 and 14 of 27: the larger remainder takes the odd one."""
  counts = [SIZES[0] // 2, round(TOTAL / 2) - SIZES[0] // 2]
  return [largest(s, n) for s, n in zip(scores, counts, strict=True)]


def half_the_units(scores):
  """4 of the 9 hidden units; the layer of the logits stays whole."""
  stays = largest(scores[0].sum(0), round(tiny.HIDDEN / 2))
  return [np.tile(stays, (tiny.FEATURES, 1)), np.ones(scores[1].shape, bool)]


def adam(weights, part, s, x, y, tau):
  """Descends on scores, straight through the threshold."""
  m = [np.zeros_like(w) for w in weights]
  v = [np.zeros_like(w) for w in weights]
  for t in range(1, EPOCHS + 1):
    net = [w * p * (a >= tau) for w, p, a in zip(weights, part, s, strict=True)]
    _, grads = oracles.loss_and_grad(*net, x, y)
    for i, g in enumerate(grads):
      g = g * weights[i] * part[i]
      m[i] = 0.9 * m[i] + 0.1 * g
      v[i] = 0.999 * v[i] + 0.001 * g**2
      step = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
      s[i] = s[i] - RATE * step
  return s


def loop(weights, data, cohorts, *, retain, tau, vote):
  """Returns (mean, {client: what it retains}, {client: its mask})."""
  mean = [np.ones_like(w) for w in weights]
  parts, masks = {}, {}
  for cohort in cohorts:
    bits = [np.zeros_like(w) for w in weights]
    held = [np.zeros_like(w) for w in weights]
    for k in cohort:
      x, y = oracles.client_arrays(data, k)
      s = [(m >= tau) * 1.0 if vote else m.copy() for m in mean]
      if k not in parts:
        _, grads = oracles.loss_and_grad(*weights, x, y)
        parts[k] = retain([-w * g for w, g in zip(weights, grads, strict=True)])
        s = [np.ones_like(w) for w in weights]
      s = adam(weights, parts[k], s, x, y, tau)
      masks[k] = [p & (a >= tau) for p, a in zip(parts[k], s, strict=True)]
      for i in range(2):
        bits[i] += len(y) * masks[k][i]
        held[i] += len(y) * parts[k][i]
    mean = [
      np.where(h > 0, b / np.maximum(h, 1), old)
      for b, h, old in zip(bits, held, mean, strict=True)
    ]
  return mean, parts, masks


def flat(layers):
  return np.concatenate([np.ravel(layer) for layer in layers])


def dense(words):
  return np.asarray(unpack_bits(words, TOTAL))


SETTINGS = {
  "mean": ({}, half_the_weights),
  "vote": ({"downlink": "vote"}, half_the_weights),
  "low threshold": ({"threshold": 0.3}, half_the_weights),
  "units": ({"structured": True, "whole": ["second"]}, half_the_units),
}


@functools.cache
def _run(name):
  algorithm = fed_mask(tiny.mlp(), **LOCAL, **SETTINGS[name][0])
  return algorithm, *federation.run(algorithm, federation.COHORTS)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_equals_the_loop(name):
  options, retain = SETTINGS[name]
  _, first, last, seen = _run(name)
  mean, parts, masks = loop(
    federation.weights(first.server.weights),
    tiny.data(),
    federation.COHORTS,
    retain=retain,
    tau=options.get("threshold", 0.5),
    vote=options.get("downlink") == "vote",
  )
  for k, part in parts.items():
    np.testing.assert_array_equal(dense(last.clients.part[k]), flat(part))
    np.testing.assert_array_equal(dense(last.clients.mask[k]), flat(masks[k]))
    np.testing.assert_array_equal(dense(last.server.parts[k]), flat(part))
  np.testing.assert_allclose(last.server.mean, flat(mean), atol=1e-6)
  assert 0.1 < np.mean(flat(mean) < 1) < 0.9  # there was something to mask
  chosen = np.stack([flat(part) for part in parts.values()])
  assert len(np.unique(chosen, axis=0)) > 1  # and parts differ
  used = [flat(masks[k]).mean() for k in federation.COHORTS[-1]]
  np.testing.assert_allclose(seen[-1].metrics["density"], used, rtol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_travels(name):
  """Positions once, one bit a retained weight, the averages of the own part."""
  options, retain = SETTINGS[name]
  _, _, _, seen = _run(name)
  kept = int(flat(retain([np.zeros(s.shape) for s in _zeros()])).sum())
  if options.get("structured"):  # 4 x 12 weights and all 27, bitmaps
    assert kept == 4 * 12 + 27
  bitmaps = sum(4 + -(-size // 8) for size in SIZES)
  answer = -(-kept // 8) if options.get("downlink") == "vote" else 4 * kept
  before = set()
  for cohort, ids in zip(seen, federation.COHORTS, strict=True):
    new = np.array([k not in before for k in ids])
    up = np.where(new, bitmaps, 0) + -(-kept // 8)
    np.testing.assert_array_equal(cohort.up_bytes, up)
    np.testing.assert_array_equal(cohort.down_bytes, np.where(new, 0, answer))
    before |= set(ids)


def _zeros():
  return [
    np.zeros((tiny.FEATURES, tiny.HIDDEN)),
    np.zeros((tiny.HIDDEN, tiny.CLASSES)),
  ]


def test_clients_are_judged_with_their_own_masks():
  algorithm, _, last, _ = _run("mean")
  theta = np.asarray(tree.ravel(last.server.weights))
  for k in range(tiny.CLIENTS):
    own = federation.of_client(last.clients, k)
    got = tree.ravel(algorithm.predict(last.server, own, jnp.int32(k)))
    mask = dense(own.mask)
    if k == 0:  # never took part
      assert not mask.any()
      mask = np.asarray(last.server.mean) >= 0.5
    np.testing.assert_array_equal(got, theta * mask)
  np.testing.assert_array_equal(last.server.weights["first"], _start()["first"])


def _start():
  return _run("mean")[1].server.weights


@pytest.mark.parametrize("downlink", ["mean", "vote"])
def test_with_everything_retained_it_is_the_zero_one_supermask(downlink):
  """HideNseek at density 1, anchor 1/2: its scores are ours less 1/2."""
  pruning = prune_at_init(
    tiny.mlp(), tiny.INPUT_SHAPE, density=1.0, by="magnitude"
  )
  local = {k: v for k, v in LOCAL.items() if k != "num_clients"}
  start, other, _ = federation.run(
    hide_n_seek(
      tiny.mlp(),
      pruning,
      anchor=0.5,
      values=(0, 1),
      downlink=downlink,
      personal=True,
      **local,
    )
  )
  algorithm = fed_mask(
    tiny.mlp(),
    density=1.0,
    downlink=downlink,
    weights=start.server.weights,
    **LOCAL,
  )
  _, last, _ = federation.run(algorithm)
  np.testing.assert_allclose(
    last.server.mean, (other.server.mean + 1) / 2, atol=1e-6
  )
  for k in range(tiny.CLIENTS):
    signs = federation.of_client(other.clients, k).unpack()
    np.testing.assert_array_equal(dense(last.clients.mask[k]), signs > 0)
  assert 0.1 < np.mean(last.server.mean < 1) < 0.9


def test_clients_that_share_no_weight_exchange_nothing():
  """Each has the same mask as if nobody else had ever trained."""
  algorithm = fed_mask(tiny.mlp(), **LOCAL)
  everybody = (
    np.arange(TOTAL) % tiny.CLIENTS == np.arange(tiny.CLIENTS)[:, None]
  )
  words = pack_bits(jnp.asarray(everybody))
  state = rounds.init_state(algorithm, federation.KEY, tiny.CLIENTS)
  start = state._replace(
    server=state.server._replace(parts=words),
    clients=type(state.clients)(words, words),
  )

  @jax.jit
  def one_round(state, ids):
    make = rounds.make_round(algorithm, lambda key, data: ids)
    return make(state, tiny.data())[0]

  def three(ids):
    state = start
    for _ in range(3):
      state = one_round(state, jnp.asarray(ids))
    return state

  together = three(range(tiny.CLIENTS))
  np.testing.assert_array_equal(together.server.parts, words)
  for k in range(tiny.CLIENTS):
    alone = three([k])
    np.testing.assert_array_equal(
      together.clients.mask[k], alone.clients.mask[k]
    )
    part = everybody[k]
    np.testing.assert_array_equal(
      together.server.mean[part], alone.server.mean[part]
    )
    # a holder's own bits, and nothing of the others'
    np.testing.assert_array_equal(
      together.server.mean[part], dense(together.clients.mask[k])[part]
    )
  changed = np.asarray(together.clients.mask) != np.asarray(start.clients.mask)
  assert changed.any()


def test_a_client_without_budget_prunes_later():
  algorithm = fed_mask(tiny.mlp(), **LOCAL)
  budget = [0] + [5] * (tiny.CLIENTS - 1)
  everybody = [list(range(tiny.CLIENTS))]
  _, last, seen = federation.run(
    algorithm, everybody, data=tiny.data(budget=budget)
  )
  np.testing.assert_array_equal(seen[0].ok, np.array(budget) > 0)
  assert not np.any(last.server.parts[0]) and not np.any(last.clients.part[0])
  assert dense(last.server.parts[1]).sum() == round(TOTAL / 2)


def test_weights_are_a_seed_or_travel_once():
  ours, seed = _start(), fed_mask(tiny.mlp(), **LOCAL)
  given = fed_mask(tiny.mlp(), weights=ours, **LOCAL)
  for algorithm, size in ((seed, 8), (given, 4 * TOTAL)):
    state = algorithm.init(jax.random.key(5))
    message = algorithm.downlink(state, jnp.int32(2))
    assert wire.setup_nbytes(message) == size
    assert wire.nbytes(message) == 0  # it retains nothing yet
  np.testing.assert_array_equal(state.weights["first"], ours["first"])


@pytest.mark.parametrize(
  "options, match",
  [
    ({"downlink": "maen"}, "did you mean 'mean'"),
    ({"density": 0.01}, "removes layer 'second'"),
    ({"structured": True, "whole": ["sceond"]}, "did you mean 'second'"),
    ({"whole": ["second"]}, "structured=True"),
    ({"weights": {"first": np.zeros(3)}}, "weights of another model"),
  ],
)
def test_wrong_settings_are_named(options, match):
  with pytest.raises(UserError, match=match):
    fed_mask(tiny.mlp(), **LOCAL, **options)
