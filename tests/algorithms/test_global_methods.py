"""FedProx, FedNova, SCAFFOLD, FedDyn, MOON, Mime: oracles and identities."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_global
import pytest
import tiny

from fedjax_het import algorithms
from fedjax_het.core import rounds

STEPS = [3, 1, 4, 2, 4, 3, 1]  # unequal, by the devices' budgets
SETTINGS = dict(batch_size=federation.BATCH, epochs=4)
RATE = 0.1


def _run(algorithm, cohorts=federation.COHORTS):
  return federation.run(algorithm, cohorts, tiny.data(budget=STEPS))


def _fed_avg(server_optimizer=None):
  return algorithms.fed_avg(
    tiny.mlp(),
    optimizer=optax.sgd(RATE),
    server_optimizer=server_optimizer,
    **SETTINGS,
  )


def _oracle(oracle, first, cohorts=federation.COHORTS, **options):
  return oracle(
    federation.weights(first.server.params),
    tiny.data(),
    cohorts,
    rate=RATE,
    steps=STEPS,
    **options,
  )


def test_fed_adagrad_equals_the_loop():
  first, last, _ = _run(
    algorithms.fed_avg(
      tiny.mlp(),
      optimizer=optax.sgd(RATE),
      server_optimizer=optax.adagrad(0.05, 1e-3, 1e-6),
      **SETTINGS,
    )
  )
  want = _oracle(
    oracles_global.fed_adagrad, first, server_rate=0.05, start=1e-3, eps=1e-6
  )
  federation.assert_close(last.server.params, want)


def test_fed_prox_equals_the_loop():
  first, last, _ = _run(
    algorithms.fed_prox(
      tiny.mlp(), mu=0.7, optimizer=optax.sgd(RATE), **SETTINGS
    )
  )
  want = _oracle(oracles_global.fed_prox, first, mu=0.7)
  federation.assert_close(last.server.params, want)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fed_nova_equals_the_loop(momentum):
  """The probe's length is the paper's closed form of ||a||_1."""
  first, last, seen = _run(
    algorithms.fed_nova(
      tiny.mlp(), optimizer=optax.sgd(RATE, momentum=momentum), **SETTINGS
    )
  )
  want = _oracle(oracles_global.fed_nova, first, momentum=momentum)
  federation.assert_close(last.server.params, want)
  size = sum(leaf.size for leaf in jax.tree.leaves(first.server.params))
  assert (np.asarray(seen[0].up_bytes) == 4 * (size + 1)).all()


def test_fed_nova_gives_a_client_without_steps_no_say():
  model, ids = tiny.mlp(), jnp.asarray([1, 2, 4])
  algorithm = algorithms.fed_nova(model, optimizer=optax.sgd(RATE), **SETTINGS)
  budget = [4, 4, 0, 4, 4, 4, 4]
  _, with_idle, _ = federation.run(algorithm, [ids], tiny.data(budget=budget))
  _, without, _ = federation.run(algorithm, [jnp.asarray([1, 4])])
  federation.assert_same(with_idle.server, without.server)


def test_scaffold_equals_the_loop():
  first, last, seen = _run(
    algorithms.scaffold(
      tiny.mlp(),
      num_clients=tiny.CLIENTS,
      rate=RATE,
      server_rate=0.8,
      **SETTINGS,
    )
  )
  x, c, own = _oracle(oracles_global.scaffold, first, server_rate=0.8)
  federation.assert_close(last.server.params, x)
  federation.assert_close(last.server.control, c)
  for k in range(tiny.CLIENTS):
    control = federation.of_client(last.clients, k)
    federation.assert_close(control, own[k])
  size = sum(leaf.size for leaf in jax.tree.leaves(first.server.params))
  for sent in (seen[0].up_bytes, seen[0].down_bytes):
    assert (np.asarray(sent) == 8 * size).all()


@pytest.mark.parametrize("alpha", [0.05, 1.0])
def test_fed_dyn_equals_the_loop(alpha):
  first, last, _ = _run(
    algorithms.fed_dyn(
      tiny.mlp(),
      num_clients=tiny.CLIENTS,
      alpha=alpha,
      optimizer=optax.sgd(RATE),
      **SETTINGS,
    )
  )
  theta, h, g = _oracle(oracles_global.fed_dyn, first, alpha=alpha)
  federation.assert_close(last.server.params, theta)
  h = [-a / alpha for a in h]
  federation.assert_close(last.server.drift, h)
  for k in range(tiny.CLIENTS):
    changes = federation.of_client(last.clients, k)
    federation.assert_close(changes, [-a / alpha for a in g[k]])


@pytest.mark.parametrize("hidden", [True, False])
def test_moon_equals_the_loop(hidden):
  first, last, _ = _run(
    algorithms.moon(
      tiny.mlp(),
      mu=2.0,
      temperature=0.5,
      features=(lambda p, x: jax.nn.relu(x @ p["first"])) if hidden else None,
      optimizer=optax.sgd(RATE),
      **SETTINGS,
    )
  )
  options = dict(temperature=0.5, hidden=hidden)
  want = _oracle(oracles_global.moon, first, mu=2.0, **options)
  federation.assert_close(last.server.params, want)
  without = _oracle(oracles_global.moon, first, mu=0.0, **options)
  assert (
    max(np.abs(a - b).max() for a, b in zip(want, without, strict=True)) > 1e-3
  )


@pytest.mark.parametrize("lite", [True, False])
def test_mime_equals_the_loop(lite):
  first, last, seen = _run(
    algorithms.mime(
      tiny.mlp(), optimizer=optax.sgd(RATE, momentum=0.6), lite=lite, **SETTINGS
    )
  )
  want = _oracle(oracles_global.mime, first, momentum=0.6, lite=lite)
  federation.assert_close(last.server.params, want)
  size = sum(leaf.size for leaf in jax.tree.leaves(first.server.params))
  assert (np.asarray(seen[0].up_bytes) == 8 * size).all()
  down = 8 * size if lite else 12 * size
  assert (np.asarray(seen[0].down_bytes) == down).all()


@functools.cache
def _fed_avg_on_batches(equally):
  """FedAvg with momentum on batches of 4, all doing two steps if `equally`.

  Returns:
    (its settings, the data, its last parameters).
  """
  settings = dict(
    optimizer=optax.sgd(RATE, momentum=0.5), batch_size=4, epochs=2
  )
  # 3 examples in batches of 4 for 2 epochs: nobody does less than two steps
  data = tiny.data(budget=[2] * tiny.CLIENTS if equally else None)
  algorithm = algorithms.fed_avg(tiny.mlp(), **settings)
  _, last, _ = federation.run(algorithm, federation.COHORTS, data)
  return settings, data, last.server.params


@pytest.mark.parametrize("name", ["fed_prox", "moon", "fed_nova"])
def test_without_its_term_it_is_fed_avg(name):
  """mu = 0; FedNova: equally many steps instead."""
  equally = name == "fed_nova"
  settings, data, want = _fed_avg_on_batches(equally)
  zero = {} if equally else {"mu": 0.0}
  algorithm = getattr(algorithms, name)(tiny.mlp(), **zero, **settings)
  _, got, _ = federation.run(algorithm, federation.COHORTS, data)
  federation.assert_same(got.server.params, want)


def test_mime_lite_without_moments_is_fed_avg():
  """Full batches: Mime's keys for the order of examples are its own."""
  algorithm = algorithms.mime(
    tiny.mlp(), optimizer=optax.sgd(RATE), lite=True, **SETTINGS
  )
  _, got, _ = _run(algorithm)
  _, want, _ = _run(_fed_avg())
  federation.assert_same(got.server.params, want.server.params)


def _evenly(data):
  """The same data with equal counts, so that weights are equal."""
  count = jnp.full_like(data.train.count, 3)
  return data._replace(train=data.train._replace(count=count))


def test_scaffold_with_zero_variates_is_fed_avg():
  """Its first round, if clients weigh the same."""
  data = _evenly(tiny.data(budget=STEPS))
  algorithm = algorithms.scaffold(
    tiny.mlp(), num_clients=tiny.CLIENTS, rate=RATE, **SETTINGS
  )
  cohorts = federation.COHORTS[:1]
  _, got, _ = federation.run(algorithm, cohorts, data)
  want = _fed_avg()
  _, want, _ = federation.run(want, cohorts, data)
  federation.assert_same(got.server.params, want.server.params)


def test_scaffold_with_one_full_batch_step_of_everybody_is_fed_avg():
  """Then c = mean c_k in every round, and corrections cancel in the mean."""
  data = _evenly(tiny.data(budget=[1] * tiny.CLIENTS))
  algorithm = algorithms.scaffold(
    tiny.mlp(), num_clients=tiny.CLIENTS, rate=RATE, **SETTINGS
  )
  _, got, _ = federation.run(algorithm, federation.EVERYBODY, data)
  want = _fed_avg()
  _, want, _ = federation.run(want, federation.EVERYBODY, data)
  federation.assert_same(got.server.params, want.server.params)


def test_fed_dyn_without_regulariser_is_nesterov_at_the_server():
  data = _evenly(tiny.data(budget=STEPS))
  algorithm = algorithms.fed_dyn(
    tiny.mlp(),
    num_clients=tiny.CLIENTS,
    alpha=0.0,
    optimizer=optax.sgd(RATE),
    **SETTINGS,
  )
  _, got, _ = federation.run(algorithm, federation.EVERYBODY, data)
  want = _fed_avg(optax.sgd(1.0, momentum=1.0, nesterov=True))
  _, want, _ = federation.run(want, federation.EVERYBODY, data)
  federation.assert_same(got.server.params, want.server.params)


def test_hyper_parameters_can_be_swept_in_one_program():
  """mu is data: vmapped values equal one run for each."""
  settings = dict(optimizer=optax.sgd(RATE), batch_size=8)
  data, ids = tiny.data(), jnp.arange(4)

  def run(mu):
    algorithm = algorithms.fed_prox(tiny.mlp(), mu=mu, **settings)
    state = rounds.init_state(algorithm, federation.KEY, tiny.CLIENTS)
    return rounds.make_round(algorithm, lambda key, data: ids)(state, data)[
      0
    ].server.params

  values = jnp.asarray([0.0, 0.3, 2.0])
  together, alone = jax.jit(jax.vmap(run))(values), jax.jit(run)
  for i, mu in enumerate(values):
    federation.assert_same(federation.of_client(together, i), alone(mu))
