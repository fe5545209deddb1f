"""Robust means against NumPy, SciPy and brute force; and inside the engine."""

import itertools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import scipy.optimize
import scipy.stats
import tiny

from fedjax_het import robust
from fedjax_het.algorithms import fed_avg
from fedjax_het.core import mesh, reduce, rounds
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Upload
from fedjax_het.masks import votes

N = 9
CHUNKS = [(9,), (1,) * 9, (2, 1, 6)]


def _messages(absent=()):
  """Nine messages of two leaves; the absent ones are NaN with weight 0."""
  rng = np.random.default_rng(3)
  tree = {
    "a": rng.normal(size=(N, 4, 3)).astype(np.float32),
    "b": rng.normal(size=(N, 5)).astype(np.float32),
  }
  weights = rng.integers(1, 9, size=N).astype(np.float32)
  weights[list(absent)] = 0
  for leaf in tree.values():
    leaf[list(absent)] = np.nan
  return tree, weights


def _reduce(reducer, tree, weights, chunks=(N,)):
  first = jax.tree.map(lambda m: jnp.zeros_like(m[0]), tree)
  parts, start = [], 0
  for size in chunks:
    part = jax.tree.map(lambda m, s=start, n=size: m[s : s + n], tree)
    part = jax.tree.map(jnp.asarray, part)
    here = jnp.asarray(weights[start : start + size])
    parts.append(reducer.add(reducer.zero(first), part, here))
    start += size
  acc = parts[0]
  for part in parts[1:]:
    acc = reducer.merge(acc, part)
  return reducer.finish(acc)


def _flat(tree, weights=None):
  """Messages that are there as f64[n, P]; or one message as f64[P]."""
  leaves = [np.asarray(leaf, np.float64) for leaf in tree.values()]
  if weights is None:
    return np.concatenate([leaf.ravel() for leaf in leaves])
  flat = np.concatenate([leaf.reshape(N, -1) for leaf in leaves], axis=1)
  return flat[weights > 0]


def _krum(points, malicious, multi):
  """Blanchard et al. by trying every set of nearest neighbours."""
  n = len(points)
  scores = []
  for i in range(n):
    others = [j for j in range(n) if j != i]
    scores.append(
      min(
        sum(((points[i] - points[j]) ** 2).sum() for j in near)
        for near in itertools.combinations(others, max(n - malicious - 2, 1))
      )
    )
  return points[np.argsort(scores)[:multi]].mean(axis=0)


RULES = {
  "median": (
    robust.coordinate_median(N),
    lambda points: np.median(points, axis=0),
  ),
  "trim 0.25": (
    robust.trimmed_mean(N, 0.25),
    lambda points: scipy.stats.trim_mean(points, 0.25, axis=0),
  ),
  "trim 2": (
    robust.trimmed_mean(N, 2),
    lambda points: np.sort(points, axis=0)[2:-2].mean(axis=0),
  ),
  "trim 0": (robust.trimmed_mean(N, 0), lambda points: points.mean(axis=0)),
  "krum 2": (robust.krum(N, 2), lambda points: _krum(points, 2, 1)),
  "multi-krum 2 3": (
    robust.krum(N, 2, multi=3),
    lambda points: _krum(points, 2, 3),
  ),
  "multi-krum 0": (
    robust.krum(N, 0, multi=N),
    lambda points: points.mean(axis=0),
  ),
}


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("absent", [(), (0,), (1, 8), (0, 3, 4, 7)])
@pytest.mark.parametrize("name", RULES)
def test_rule_equals_numpy(name, absent, chunks):
  """Odd and even numbers of arrivals; weights must not matter."""
  reducer, oracle = RULES[name]
  tree, weights = _messages(absent)
  got = _reduce(reducer, tree, weights, chunks)
  want = oracle(_flat(tree, weights))
  np.testing.assert_allclose(_flat(got), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("absent", [(), (1, 8)])
def test_geometric_median_minimises_the_sum_of_distances(absent):
  tree, weights = _messages(absent)
  points = _flat(tree, weights)

  def cost(v):
    return np.sqrt(((points - v) ** 2).sum(axis=1)).sum()

  best = scipy.optimize.minimize(cost, points.mean(axis=0), tol=1e-12)
  got = _flat(_reduce(robust.geometric_median(N, steps=60), tree, weights))
  np.testing.assert_allclose(got, best.x, atol=2e-4)
  few = _flat(_reduce(robust.geometric_median(N, steps=1), tree, weights))
  assert cost(got) < cost(few) < cost(np.median(points, axis=0))


@pytest.mark.parametrize(
  "reducer",
  [
    robust.coordinate_median(N),
    robust.trimmed_mean(N, 4),
    robust.krum(N, 3),
    robust.krum(N, 3, multi=3),
    robust.geometric_median(N),
  ],
)
def test_three_wild_messages_of_nine_do_not_matter(reducer):
  """The result stays among the honest, where the mean is carried away."""
  tree, weights = _messages()
  for sign, k in zip([1, 1, -1], [0, 4, 8], strict=True):
    for leaf in tree.values():
      leaf[k] = sign * 1e30
  honest = _flat(tree, weights)[[1, 2, 3, 5, 6, 7]]
  got = _flat(_reduce(reducer, tree, weights))
  slack = 1e-5
  assert (got >= honest.min(axis=0) - slack).all()
  assert (got <= honest.max(axis=0) + slack).all()
  mean = _flat(_reduce(reduce.weighted_mean(), tree, weights))
  assert np.abs(mean).min() > 1e28


@pytest.mark.parametrize("name", ["median", "trim 0.25", "krum 2"])
def test_nobody_gives_zeros_and_too_many_give_nan(name):
  tree, weights = _messages()
  nobody = _reduce(RULES[name][0], tree, np.zeros_like(weights))
  assert (_flat(nobody) == 0).all()
  small = {
    "median": robust.coordinate_median(8),
    "trim 0.25": robust.trimmed_mean(8, 0.25),
    "krum 2": robust.krum(8, 2),
  }[name]
  assert np.isnan(_flat(_reduce(small, tree, weights, (4, 5)))).all()


def test_one_arrival_is_the_result():
  tree, weights = _messages(range(1, N))
  for reducer, _ in RULES.values():
    got = _flat(_reduce(reducer, tree, weights))
    np.testing.assert_allclose(got, _flat(tree, weights)[0], rtol=1e-6)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: robust.krum(6, 2), "2 x 2 \\+ 3"),
    (lambda: robust.krum(9, 2, multi=10), "1 to 9"),
    (lambda: robust.trimmed_mean(9, 0.5), "below 0.5"),
    (lambda: robust.trimmed_mean(9, 5), "below half"),
    (lambda: robust.trimmed_mean(9, -1), "below half"),
    (
      lambda: robust.coordinate_median(3).zero({"a": jnp.zeros(2, jnp.int32)}),
      "float messages",
    ),
  ],
)
def test_what_makes_no_sense_is_refused(make, message):
  with pytest.raises(UserError, match=message):
    make()


# ---- inside the engine

COHORT = 5
IDS = [4, 0, 6, 2, 1]
ENGINE_RULES = {
  "median": robust.coordinate_median(COHORT),
  "krum": robust.krum(COHORT, 1, multi=3),
  "geometric": robust.geometric_median(COHORT),
}


def _without_training(reducer=None):
  """A method whose clients send what a draw and their first example say."""

  def client(message, state, data, key):
    x = data.take(jnp.arange(3)).x
    change = {
      "first": message["first"] + jax.random.normal(key, (4, 3)),
      "second": jnp.mean(x, axis=0),
    }
    return Upload(change, data.count.astype(jnp.float32), (), {})

  return Algorithm(
    init=lambda key: {"first": jnp.ones((4, 3)), "second": jnp.zeros(12)},
    downlink=lambda state, client_id: state,
    client=client,
    reducer=reducer or reduce.weighted_mean(),
    server=lambda state, reduced: reduced,
    global_params=lambda state: state,
    local_steps=lambda count, budget: jnp.minimum(count, budget),
  )


def _one_round(algorithm, ids, data=None, **kwargs):
  run = rounds.make_round(
    algorithm, lambda key, data: jnp.asarray(ids), **kwargs
  )
  state = rounds.init_state(algorithm, jax.random.key(7), tiny.CLIENTS)
  state, cohort = jax.jit(run)(state, data or tiny.data())
  return state.server, cohort


@pytest.mark.parametrize("name", ENGINE_RULES)
def test_order_chunks_devices_and_dropped_clients_change_nothing(name):
  algorithm = robust.with_reducer(_without_training(), ENGINE_RULES[name])
  want, _ = _one_round(algorithm, IDS)
  devices = mesh.client_mesh(jax.devices())
  for got, _ in (
    _one_round(algorithm, sorted(IDS), chunk=2),
    _one_round(algorithm, IDS[::-1], chunk=2, mesh=devices),
  ):
    federation.assert_same(got, want)
  poisoned, cohort = _one_round(algorithm, IDS, tiny.poison(tiny.data(), 6))
  assert not cohort.ok[2] and int(cohort.ok.sum()) == 4
  without, _ = _one_round(algorithm, [4, 0, 2, 1])
  federation.assert_same(poisoned, without)
  assert np.abs(want["first"] - without["first"]).max() > 0.1


def test_a_method_that_asks_for_the_weight_still_gets_it():
  weighted = _without_training(reduce.mean_and_weight())
  algorithm = robust.with_reducer(weighted, robust.coordinate_median(COHORT))
  algorithm = algorithm._replace(
    server=lambda state, reduced: {"mean": reduced[0], "weight": reduced[1]},
    init=lambda key: {"mean": weighted.init(key), "weight": jnp.float32(0)},
    downlink=lambda state, client_id: state["mean"],
  )
  plain = robust.with_reducer(_without_training(), ENGINE_RULES["median"])
  devices = mesh.client_mesh(jax.devices()[:2])
  got, _ = _one_round(algorithm, IDS, mesh=devices)
  want, _ = _one_round(plain, IDS)
  federation.assert_same(got["mean"], want)
  counts = np.asarray(tiny.data().train.count)
  assert float(got["weight"]) == counts[IDS].sum()


def test_fed_avg_with_a_median_equals_the_loop():
  """One full-batch step: the median of the clients' float64 gradients."""
  algorithm = robust.with_reducer(
    fed_avg(tiny.mlp(), optimizer=optax.sgd(0.1), batch_size=federation.BATCH),
    robust.coordinate_median(tiny.CLIENTS),
  )
  everybody = list(range(tiny.CLIENTS))
  first, last, _ = federation.run(algorithm, [everybody])
  start = federation.weights(first.server.params)
  grads = [
    oracles.loss_and_grad(*start, *oracles.client_arrays(tiny.data(), k))[1]
    for k in everybody
  ]
  want = [
    w - 0.1 * np.median(g, axis=0)
    for w, g in zip(start, map(np.stack, zip(*grads, strict=True)), strict=True)
  ]
  federation.assert_close(last.server.params, want)


def test_only_plain_means_are_replaced():
  median = robust.coordinate_median(COHORT)
  once = robust.with_reducer(_without_training(), median)
  for algorithm in (
    once,
    _without_training(votes.sign_mean()),
    _without_training(reduce.overlap_mean()),
    _without_training(reduce.segment_mean(3)),
    _without_training(ENGINE_RULES["krum"]),
  ):
    with pytest.raises(UserError, match="weighted mean of float"):
      robust.with_reducer(algorithm, median)
