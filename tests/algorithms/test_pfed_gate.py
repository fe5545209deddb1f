"""pFedGate: blocks, knapsack, gate and rounds, each against plain NumPy."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_submodels as oracles
import pytest
import tiny

from fedjax_het import models
from fedjax_het.algorithms import (
  _blocks,
  fed_avg,
  gate_density,
  gate_judge,
  gating,
  pfed_gate,
)
from fedjax_het.core import evaluate
from fedjax_het.core.errors import UserError

# so fast that the gates of the clients soon choose different blocks
RATE, GATE_RATE, EPOCHS, DENSITY = 0.2, 20.0, 2, 0.6
SETTINGS = dict(
  optimizer=optax.sgd(RATE),
  gate_optimizer=optax.sgd(GATE_RATE),
  batch_size=federation.BATCH,
  epochs=EPOCHS,
)
SHAPES = [(tiny.FEATURES, tiny.HIDDEN), (tiny.HIDDEN, tiny.CLASSES)]
CLIENTS = range(tiny.CLIENTS)


@functools.cache
def _gating(density=DENSITY, **options):
  return gating(tiny.mlp(), tiny.INPUT_SHAPE, density=density, **options)


@functools.cache
def _run(counted):
  algorithm = pfed_gate(tiny.mlp(), _gating(), counted=counted, **SETTINGS)
  return algorithm, *federation.run(algorithm, federation.COHORTS)


@functools.cache
def _oracle(counted):
  _, first, _, _ = _run(counted)
  return oracles.pfed_gate(
    federation.weights(first.server.params),
    _float64(first.server.gate),
    tiny.data(),
    federation.COHORTS,
    gated=oracles.Gated(SHAPES, 5, DENSITY),
    rate=RATE,
    gate_rate=GATE_RATE,
    epochs=EPOCHS,
    counted=counted,
  )


def _float64(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("counted", [True, False])
def test_it_equals_the_loop(counted):
  algorithm, _, last, seen = _run(counted)
  w, own, sent = _oracle(counted)
  federation.assert_close(last.server.params, w)
  for k, phi in own.items():
    kept = federation.of_client(last.clients, k)
    got = algorithm.predict(last.server, kept, jnp.int32(k)).gate
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
      got,
      phi,
    )
  # up: a bit a block and the blocks that were used;  down: everything
  weight = oracles.Gated(SHAPES, 5, DENSITY).weight
  size = sum(a * b for a, b in SHAPES)
  for place, k in enumerate(federation.COHORTS[-1]):
    kept = int(weight[sent[k]].sum())
    assert seen[-1].up_bytes[place] == 4 * kept + 2  # ten blocks
    assert seen[-1].down_bytes[place] == 4 * size
    np.testing.assert_allclose(
      seen[-1].metrics["sent"][place], kept / size, rtol=1e-6
    )
    assert 0.2 < seen[-1].metrics["density"][place] <= DENSITY
  assert any(not blocks.all() for blocks in sent.values())


def test_counting_the_holders_is_not_the_plain_mean():
  a, b = (_run(counted)[2].server.params for counted in (True, False))
  assert np.abs(a["first"] - b["first"]).max() > 1e-3


def test_with_every_block_used_counted_is_plain():
  runs = [
    federation.run(
      pfed_gate(tiny.mlp(), _gating(1.0), counted=counted, **SETTINGS),
      federation.COHORTS,
    )[1].server.params
    for counted in (True, False)
  ]
  federation.assert_same(*runs)


def test_with_an_open_gate_it_is_fed_avg():
  """sigmoid(40) is 1 in float32 and flat, whatever the input."""
  algorithm = pfed_gate(tiny.mlp(), _gating(1.0), **SETTINGS)

  def init(key):
    params, gate = algorithm.init(key)
    gate["scale"] = jnp.zeros_like(gate["scale"])
    gate["shift"] = jnp.full_like(gate["shift"], 40.0)
    params = tiny.mlp().init(key)  # from the key that fed_avg draws from
    return type(algorithm.init(key))(params, gate)

  _, got, _ = federation.run(algorithm._replace(init=init), federation.COHORTS)
  plain = {k: v for k, v in SETTINGS.items() if k != "gate_optimizer"}
  _, want, _ = federation.run(fed_avg(tiny.mlp(), **plain), federation.COHORTS)
  federation.assert_same(got.server.params, want.server.params)


@functools.cache
def _accuracies(together):
  algorithm, _, last, _ = _run(True)
  if together is None:
    judge = functools.partial(
      evaluate.client_accuracy, algorithm, tiny.mlp(), batch_size=3
    )
  else:
    judge = gate_judge(tiny.mlp(), _gating(), together=together)
  return jax.jit(judge), last


def _test_arrays(k):
  rows = np.asarray(tiny.data().test.index[k])
  x = np.asarray(tiny.data().examples.x, np.float64)[rows]
  return x, np.asarray(tiny.data().examples.y)[rows]


def test_densities_equal_the_loop():
  _, last = _accuracies(None)
  gated = oracles.Gated(SHAPES, 5, DENSITY)
  got = jax.jit(gate_density(_gating()))(last, tiny.data())
  for k in CLIENTS:
    kept = federation.of_client(last.clients, k)
    phi = _float64(kept.tree if kept.seen else last.server.gate)
    train = oracles.client_arrays(tiny.data(), k)[0][:, None]
    chosen = gated.choose(oracles.gate(phi, train).mean(0))
    mask = gated.apply([np.ones(shape) for shape in SHAPES], chosen)
    np.testing.assert_allclose(
      [float(values[k]) for values in got.values()],
      [leaf.mean() for leaf in mask],
      rtol=1e-6,
    )


@pytest.mark.parametrize("together", [None, 1, 3, 128])
def test_the_three_evaluations_equal_the_loop(together):
  """None: client level.  3 of 4 test examples, then the last one alone."""
  judge, last = _accuracies(together)
  gated = oracles.Gated(SHAPES, 5, DENSITY)
  w = federation.weights(last.server.params)
  want = []
  for k in CLIENTS:
    kept = federation.of_client(last.clients, k)
    phi = _float64(kept.tree if kept.seen else last.server.gate)
    train = oracles.client_arrays(tiny.data(), k)[0][:, None]
    x, y = _test_arrays(k)

    def hits(scores, x, y, w=w):
      factors = scores[0] * gated.choose(scores)
      net = gated.apply(w, factors)
      return (np.maximum(x @ net[0], 0) @ net[1]).argmax(1) == y

    if together is None:
      each = [hits(oracles.gate(phi, train).mean(0), x, y)]
    elif together == 1:
      scores = oracles.gate(phi, x[:, None], train)
      each = [
        hits(scores[i], x[i : i + 1], y[i : i + 1]) for i in range(len(y))
      ]
    else:
      parts = [slice(i, i + together) for i in range(0, len(y), together)]
      each = [
        hits(oracles.gate(phi, x[p][:, None]).mean(0), x[p], y[p])
        for p in parts
      ]
    want.append(np.concatenate(each).mean())
  np.testing.assert_allclose(judge(last, tiny.data()), want, atol=1e-6)


@pytest.mark.parametrize(
  "together, leaks", [(None, False), (1, False), (4, True)]
)
def test_what_one_test_example_learns_from_the_others(together, leaks):
  """Accuracy on a first example while the other three are replaced."""
  judge, data = _accuracies(together)[0], tiny.data()
  _, start, _, _ = _run(True)
  # Untrained, so that no class is far ahead, under a gate that reacts strongly:
  # behind the batch norm most sigmoids are near 0 or 1.
  steep = start.server.gate | {"scale": 8 * start.server.gate["scale"]}
  others = np.asarray(data.test.index)[:, 1:]
  y = np.array(data.examples.y)
  y[others] = -1  # never right
  most = 0
  for network in range(6):
    params = tiny.mlp().init(jax.random.key(network))
    state = start._replace(server=type(start.server)(params, steep))
    answers = set()
    for seed in range(4):
      rng = np.random.default_rng(seed)
      x = np.array(data.examples.x)
      x[others] = 5 * rng.normal(size=(*others.shape, x.shape[1]))
      examples = type(data.examples)(jnp.asarray(x), jnp.asarray(y))
      accuracy = judge(state, data._replace(examples=examples))
      answers.add(tuple(np.asarray(accuracy).tolist()))
    most = max(most, len(answers))
  assert (most > 1) is leaks


def test_the_knapsack_against_all_subsets():
  rng = np.random.default_rng(0)
  choose = jax.jit(
    lambda value, capacity: _blocks.knapsack(value, BLOCKS, capacity),
    static_argnums=1,
  )
  blocks = _blocks.cut({"w": jnp.zeros((7, 11)), "b": jnp.zeros(7)}, 5, 0.2)
  BLOCKS = blocks
  weight, first = blocks.weights, blocks.first
  assert weight.tolist() == [1, 2, 2, 1, 1, 15, 16, 16, 15, 15]
  for capacity in (16, 33, 50, 70, 84):
    for _ in range(10):
      value = rng.random(10).astype(np.float32)
      used = np.asarray(choose(value, capacity))
      assert used[first].all() and weight[used].sum() <= capacity
      np.testing.assert_array_equal(
        used, oracles.greedy(value, weight, first, capacity)
      )
      best = oracles.best_subset(value, weight, first, capacity)
      assert best - value.max() <= value[used].sum() <= best + 1e-5
  np.testing.assert_array_equal(choose(value, 84), np.ones(10, bool))


def test_the_knapsack_is_optimal_if_all_weigh_the_same():
  blocks = _blocks.cut({"a": jnp.zeros((5, 5)), "b": jnp.zeros((5, 5))}, 5, 0.2)
  rng = np.random.default_rng(1)
  for _ in range(10):
    value = rng.random(10).astype(np.float32)
    used = np.asarray(_blocks.knapsack(value, blocks, 31))
    best = oracles.best_subset(value, blocks.weights, blocks.first, 31)
    np.testing.assert_allclose(value[used].sum(), best, rtol=1e-6)


def test_the_released_order_rounds_and_ignores_weights():
  blocks = _blocks.cut({"a": jnp.zeros(10), "b": jnp.zeros((10, 10))}, 5, 0.2)
  value = np.full(10, 0.3, np.float32)
  value[[7, 8]] = 0.54, 0.46  # both 5 tenths: the first of them goes in first
  used = _blocks.knapsack(value, blocks, 44, "rounded")
  # first blocks 2 + 20, then 20 of b; 2 are left for one of a
  assert np.flatnonzero(used).tolist() == [0, 1, 5, 7]
  lighter = _blocks.knapsack(value, blocks, 44)
  assert np.flatnonzero(lighter).tolist() == [0, 1, 2, 3, 4, 5]


def test_blocks_are_slabs_of_output_units():
  blocks = _blocks.cut({"w": jnp.zeros((2, 3, 4, 10))}, 5, 0.2)
  got = np.asarray(blocks.expand(jnp.arange(5))["w"])
  want = np.broadcast_to(np.repeat(np.arange(5), 2), (2, 3, 4, 10))
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(3, 5), (4, 7), (9, 2), (13,), (1, 6)])
def test_blocks_that_cut_through_output_units(shape):
  """And the gradient to a block is the sum over its parameters."""
  blocks = _blocks.cut({"w": jnp.zeros(shape)}, 4, 0.3)
  ids, sizes = oracles.block_ids(shape, 4, 0.3, 0)
  assert blocks.weights.tolist() == sizes
  weight = np.random.default_rng(3).normal(size=shape).astype(np.float32)

  def weighted(of_block):
    return jnp.sum(weight * blocks.expand(of_block)["w"])

  values = jnp.arange(1.0, 1 + len(sizes))
  np.testing.assert_array_equal(blocks.expand(values)["w"], values[ids])
  want = np.zeros(len(sizes))
  np.add.at(want, ids, weight)
  got = jax.grad(weighted)(values)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4, 2), (12,)])
def test_the_gate_equals_the_loop(shape):
  """Images have statistics of an instance, vectors have not."""
  made = gating(
    models.mlp(shape, 3, (6,)), shape, density=0.5, parts=3, separate=False
  )
  rng = np.random.default_rng(2)
  phi = jax.tree.map(
    lambda leaf: jnp.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), "f4"),
    made.init(jax.random.key(0)),
  )
  x = rng.normal(loc=0.5, size=(7, *shape)).astype(np.float32)
  real = np.array([1, 1, 0, 1, 1, 0, 1], np.float32)
  images = x.reshape(7, -1, 2 if len(shape) == 3 else 12)
  images, of = images.astype(np.float64), images[real > 0].astype(np.float64)
  want = oracles.gate(_float64(phi), images, of)
  statistics = made.statistics(phi, jnp.asarray(x), jnp.asarray(real))
  got = made.scores(phi, jnp.asarray(x), statistics)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
  assert want.std() > 0.1 and got.shape == (7, 1, 12)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: _gating(0.0), "density 0 is not in"),
    (lambda: _gating(order="dp"), "unknown order 'dp'"),
    (lambda: _gating(parts=0), "parts 0"),
    (lambda: _gating(0.3, first_share=0.5), "raise the density"),
    (
      lambda: gate_judge(tiny.mlp(), _gating(), together=0),
      "together 0",
    ),
  ],
)
def test_what_does_not_fit_is_refused(make, message):
  with pytest.raises(UserError, match=message):
    make()
