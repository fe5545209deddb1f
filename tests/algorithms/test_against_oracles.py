"""Each algorithm against its NumPy loop, and its degenerate identities."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import tiny

from fedjax_het.algorithms import fed_avg, fed_pm, hide_n_seek, masked_fed_avg
from fedjax_het.core import rounds
from fedjax_het.core.errors import UserError
from fedjax_het.masks import budgets, tree
from fedjax_het.masks.at_init import prune_at_init
from fedjax_het.selection import uniform

ROUNDS, BATCH = 3, 32  # a batch holds any client whole
KEY = jax.random.key(11)


def _run(algorithm, data=None, key=KEY, num_rounds=ROUNDS):
  data = tiny.data() if data is None else data
  start = rounds.init_state(algorithm, key, data.num_clients)
  block = rounds.make_block(
    rounds.make_round(algorithm, uniform(data.num_clients)), num_rounds
  )
  state, history = jax.jit(block)(start, data)
  return start.server, state, history["rounds"]


def _pruning(density=0.5):
  return prune_at_init(
    tiny.mlp(), tiny.INPUT_SHAPE, density=density, iterations=10
  )


SERVERS = {
  "sgd": None,
  "momentum": optax.sgd(1.0, momentum=0.9),
  "adam": optax.adam(0.01, b2=0.99, eps=1e-3),
}


@pytest.mark.parametrize("server", SERVERS)
def test_fed_avg_equals_the_loop(server):
  algorithm = fed_avg(
    tiny.mlp(),
    optimizer=optax.sgd(0.1),
    batch_size=BATCH,
    epochs=4,
    server_optimizer=SERVERS[server],
  )
  start, state, seen = _run(algorithm)
  want, losses = oracles.fed_avg(
    [start.params["first"], start.params["second"]],
    tiny.data(),
    rate=0.1,
    epochs=4,
    rounds=ROUNDS,
    server=server,
  )
  got = state.server.params
  np.testing.assert_allclose(got["first"], want[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got["second"], want[1], rtol=1e-4, atol=1e-5)
  mean = (seen.weight * seen.metrics["loss"]).sum(1) / seen.weight.sum(1)
  np.testing.assert_allclose(mean, losses, rtol=1e-5)


def test_masked_fed_avg_equals_the_loop():
  algorithm = masked_fed_avg(
    tiny.mlp(),
    _pruning(),
    optimizer=optax.sgd(0.1),
    batch_size=BATCH,
    epochs=4,
  )
  start, state, _ = _run(algorithm)
  mask = start.support.mask(start.params)
  want, _ = oracles.fed_avg(
    [start.params["first"], start.params["second"]],
    tiny.data(),
    rate=0.1,
    epochs=4,
    rounds=ROUNDS,
    masks=[np.asarray(mask["first"]), np.asarray(mask["second"])],
  )
  got = state.server.params
  np.testing.assert_allclose(got["first"], want[0], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got["second"], want[1], rtol=1e-4, atol=1e-5)
  assert 0.4 < float(tree.density(mask)) < 0.6
  assert (np.asarray(got["first"])[~np.asarray(mask["first"])] == 0).all()


def test_masked_fed_avg_with_everything_kept_is_fed_avg():
  settings = dict(optimizer=optax.adam(0.01), batch_size=4, epochs=2)
  model = tiny.mlp(bias=True)
  dense = fed_avg(model, **settings)
  full = masked_fed_avg(model, _pruning(density=1.0), **settings)
  data = tiny.data()
  start = rounds.init_state(full, KEY, tiny.CLIENTS)
  ours = start._replace(
    server=dense.init(KEY)._replace(params=start.server.params), clients=()
  )
  block = [
    jax.jit(
      rounds.make_block(rounds.make_round(a, uniform(tiny.CLIENTS)), ROUNDS)
    )
    for a in (dense, full)
  ]
  want, got = block[0](ours, data)[0], block[1](start, data)[0]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    got.server.params,
    want.server.params,
  )


def test_one_client_and_one_step_is_gradient_descent():
  data = jax.tree.map(lambda leaf: leaf[1:2], tiny.data().train)
  data = tiny.data()._replace(
    train=data, test=data, budget=tiny.data().budget[:1]
  )
  algorithm = fed_avg(
    tiny.mlp(), optimizer=optax.sgd(0.3), batch_size=BATCH, epochs=1
  )
  start, state, _ = _run(algorithm, data, num_rounds=1)
  x, y = oracles.client_arrays(data, 0)
  first, second = (np.asarray(start.params[k]) for k in ("first", "second"))
  _, grads = oracles.loss_and_grad(first, second, x, y)
  got = state.server.params
  np.testing.assert_allclose(got["first"], first - 0.3 * grads[0], rtol=1e-4)
  np.testing.assert_allclose(got["second"], second - 0.3 * grads[1], rtol=1e-4)


@pytest.mark.parametrize("values", [(-1, 1), (0, 1)])
@pytest.mark.parametrize("anchor", [1.0, 0.5])
def test_hide_n_seek_equals_the_loop(values, anchor):
  rate = 0.2371  # no sum of steps hits zero, where float32 would decide
  algorithm = hide_n_seek(
    tiny.mlp(),
    _pruning(),
    optimizer=optax.adam(rate),
    batch_size=BATCH,
    epochs=5,
    anchor=anchor,
    values=values,
  )
  start, state, _ = _run(algorithm)
  mask = start.support.mask(start.weights)
  want = oracles.sign_training(
    [start.weights["first"], start.weights["second"]],
    [np.asarray(mask["first"]), np.asarray(mask["second"])],
    tiny.data(),
    rate=rate,
    epochs=5,
    rounds=ROUNDS,
    anchor=anchor,
    values=values,
  )
  got = state.server.support.scatter(state.server.mean, start.weights)
  got = np.concatenate([np.ravel(got["first"]), np.ravel(got["second"])])
  want = np.concatenate([np.ravel(w) for w in want])
  # a score within float32 noise of zero may take the other sign
  assert np.mean(np.abs(got - want) > 1e-5) <= 0.02
  assert np.mean(np.abs(want) < 1) > 0.3  # clients did disagree


def test_hide_n_seek_freezes_its_pruned_weights():
  algorithm = hide_n_seek(
    tiny.mlp(), _pruning(0.4), optimizer=optax.adam(0.3), batch_size=8
  )
  start, state, seen = _run(algorithm)
  jax.tree.map(
    np.testing.assert_array_equal, state.server.weights, start.weights
  )
  params = algorithm.global_params(state.server)
  jax.tree.map(
    lambda p, w: np.testing.assert_array_equal(np.abs(p), np.abs(w)),
    params,
    start.weights,
  )
  kept = budgets.surviving(start.weights, 0.4)
  assert sum(int((w != 0).sum()) for w in start.weights.values()) == kept
  np.testing.assert_array_equal(seen.up_bytes, -(-kept // 8))
  np.testing.assert_array_equal(seen.down_bytes, 4 * kept)


def test_hide_n_seek_keeps_the_scale_of_each_layer():
  """Surviving weights are theta / sqrt(d_l), from the same initial draw."""
  algorithm = hide_n_seek(
    tiny.mlp(), _pruning(0.4), optimizer=optax.adam(0.3), batch_size=8
  )
  state = algorithm.init(KEY)
  theta = tiny.mlp().init(jax.random.split(KEY)[0])
  for name, kept in state.weights.items():
    kept, dense = np.asarray(kept), np.asarray(theta[name])
    density = np.mean(kept != 0)
    where = kept != 0
    np.testing.assert_allclose(
      kept[where], dense[where] / np.sqrt(density), rtol=1e-5
    )


def _equal_counts():
  data = tiny.data()
  count = jnp.full_like(data.train.count, 6)
  return data._replace(train=data.train._replace(count=count))


def test_count_downlink_is_the_mean_in_fewer_bits():
  settings = dict(optimizer=optax.adam(0.3), batch_size=8, epochs=2)
  mean = hide_n_seek(tiny.mlp(), _pruning(), **settings)
  count = hide_n_seek(
    tiny.mlp(),
    _pruning(),
    downlink="count",
    cohort_size=tiny.CLIENTS,
    **settings,
  )
  _, want, by_mean = _run(mean, _equal_counts())
  _, got, by_count = _run(count, _equal_counts())
  np.testing.assert_allclose(
    got.server.mean, want.server.mean, rtol=1e-5, atol=1e-6
  )
  kept = want.server.mean.size
  # 7 clients: 3 bits a weight, and the number of voters
  assert by_count.down_bytes[1, 0] == -(-3 * kept // 8) + 4
  assert by_mean.down_bytes[1, 0] == 4 * kept


def test_vote_downlink_sends_one_bit_and_forgets_the_margin():
  algorithm = hide_n_seek(
    tiny.mlp(),
    _pruning(),
    optimizer=optax.adam(0.3),
    batch_size=8,
    downlink="vote",
  )
  _, state, seen = _run(algorithm)
  kept = state.server.mean.size
  np.testing.assert_array_equal(seen.down_bytes, -(-kept // 8))
  _, signs = algorithm.downlink(state.server, jnp.int32(0))
  np.testing.assert_array_equal(
    signs.unpack(), np.where(np.asarray(state.server.mean) >= 0, 1, -1)
  )


def test_personal_signs_are_the_clients_own():
  algorithm = hide_n_seek(
    tiny.mlp(),
    _pruning(),
    optimizer=optax.adam(0.3),
    batch_size=8,
    personal=True,
  )
  _, state, _ = _run(algorithm)
  signs = np.stack(
    [
      np.asarray(
        jax.tree.map(lambda leaf, k=k: leaf[k], state.clients).unpack()
      )
      for k in range(tiny.CLIENTS)
    ]
  )
  weight = np.asarray(tiny.data().train.count, np.float64)
  np.testing.assert_allclose(
    state.server.mean, np.average(signs, axis=0, weights=weight), atol=1e-6
  )


@pytest.mark.parametrize("reset_every", [1, 2])
def test_fed_pm_keeps_a_beta_posterior(reset_every):
  """Masks fed in by hand; the expected posterior written from Algorithm 2."""
  algorithm = fed_pm(
    tiny.mlp(),
    optimizer=optax.adam(0.1),
    batch_size=8,
    prior=2.0,
    reset_every=reset_every,
  )
  state = algorithm.init(KEY)
  size = tree.num_maskable(state.weights)
  rng = np.random.default_rng(0)
  for t in range(4):
    masks = rng.integers(0, 2, size=(5, size))
    if t % reset_every == 0:
      alpha, beta = np.full(size, 2.0), np.full(size, 2.0)
    alpha, beta = alpha + masks.sum(0), beta + (1 - masks).sum(0)
    mean = jnp.asarray(2 * masks.mean(0) - 1, jnp.float32)
    state = algorithm.server(state, (mean, jnp.float32(5)))
    _, p = algorithm.downlink(state, jnp.int32(0))
    np.testing.assert_allclose(
      p, (alpha - 1) / (alpha + beta - 2), rtol=1e-5, atol=1e-6
    )


def test_fed_pm_starts_even_and_sends_a_bit_for_each_weight():
  algorithm = fed_pm(tiny.mlp(), optimizer=optax.adam(0.1), batch_size=8)
  start, _, seen = _run(algorithm)
  _, p = algorithm.downlink(start, jnp.int32(0))
  np.testing.assert_array_equal(p, np.full(p.shape, 0.5, np.float32))
  np.testing.assert_array_equal(seen.up_bytes, -(-p.size // 8))
  # half of the bits at the start, whatever the clients' data
  np.testing.assert_allclose(seen.metrics["density"][0], 0.5, atol=0.15)


@pytest.mark.parametrize(
  "options, match",
  [
    ({"downlink": "maen"}, "did you mean 'mean'"),
    ({"values": (0, 2)}, r"\(-1, 1\) or \(0, 1\)"),
    ({"downlink": "count"}, "cohort_size"),
  ],
)
def test_wrong_settings_are_named(options, match):
  with pytest.raises(UserError, match=match):
    hide_n_seek(
      tiny.mlp(), _pruning(), optimizer=optax.sgd(1.0), batch_size=8, **options
    )


def test_prune_at_init_names_what_is_missing():
  with pytest.raises(UserError, match="did you mean 'synflow'"):
    prune_at_init(tiny.mlp(), tiny.INPUT_SHAPE, density=0.5, by="synflo")
  with pytest.raises(UserError, match="public batch"):
    prune_at_init(tiny.mlp(), tiny.INPUT_SHAPE, density=0.5, by="snip")


@pytest.mark.parametrize(
  "by", ["synflow", "snip", "grasp", "magnitude", "random"]
)
def test_every_saliency_keeps_the_number_asked_for(by):
  model, data = tiny.mlp(), tiny.data()
  pruning = prune_at_init(
    model, tiny.INPUT_SHAPE, density=0.3, by=by, batch=data.heldout
  )
  params = model.init(KEY)
  mask = pruning.mask(KEY, params)
  assert int(tree.num_kept(mask)) == budgets.surviving(params, 0.3)
