"""Personalised methods against their oracles, and their identities."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_personal as oracles
import pytest
import tiny

from fedjax_het import algorithms
from fedjax_het.core.cohort import client_data
from fedjax_het.core.errors import UserError

RATE, EPOCHS = 0.1, 3
SETTINGS = dict(
  optimizer=optax.sgd(RATE), batch_size=federation.BATCH, epochs=EPOCHS
)
NEVER = 0  # the client that takes part in no cohort


def _run(factory, cohorts=federation.COHORTS, **options):
  algorithm = factory(tiny.mlp(), **(SETTINGS | options))
  first, last, seen = federation.run(algorithm, cohorts)
  params = federation.weights(algorithm.global_params(first.server))
  return algorithm, last, seen, params


def _oracle(oracle, params, cohorts=federation.COHORTS, **options):
  return oracle(
    params, tiny.data(), cohorts, rate=RATE, epochs=EPOCHS, **options
  )


@functools.cache
def _baseline(name, everybody=False):
  """(algorithm, last state) of FedAvg or local training, for identities."""
  cohorts = federation.EVERYBODY if everybody else federation.COHORTS
  return _run(getattr(algorithms, name), cohorts)[:2]


def _of(algorithm, state, k):
  """What client k is evaluated with."""
  kept = federation.of_client(state.clients, k)
  return algorithm.predict(state.server, kept, jnp.int32(k))


def test_local_only_equals_the_loop_and_sends_nothing():
  algorithm, last, seen, start = _run(algorithms.local_only)
  own = _oracle(oracles.local_only, start)
  for k, want in own.items():
    federation.assert_close(_of(algorithm, last, k), want)
  federation.assert_close(_of(algorithm, last, NEVER), start)
  assert not np.any(seen[0].up_bytes) and not np.any(seen[0].down_bytes)


def test_ditto_equals_the_loop():
  algorithm, last, seen, start = _run(
    algorithms.ditto, lam=0.8, personal_epochs=2
  )
  w, own = _oracle(oracles.ditto, start, personal_epochs=2, lam=0.8)
  federation.assert_close(last.server.params, w)
  for k, want in own.items():
    federation.assert_close(_of(algorithm, last, k), want)
  federation.assert_close(_of(algorithm, last, NEVER), w)
  np.testing.assert_array_equal(seen[0].steps, EPOCHS + 2)


def test_ditto_without_pull_is_fed_avg_and_local_only():
  algorithm, last, _, _ = _run(algorithms.ditto, federation.EVERYBODY, lam=0.0)
  _, fed_avg = _baseline("fed_avg", everybody=True)
  alone, local = _baseline("local_only", everybody=True)
  federation.assert_same(last.server.params, fed_avg.server.params)
  for k in range(tiny.CLIENTS):
    federation.assert_same(_of(algorithm, last, k), _of(alone, local, k))


P_FED_ME = dict(lam=4.0, inner_rate=0.05, server_rate=0.7)


def test_p_fed_me_equals_the_loop():
  algorithm, last, _, start = _run(
    algorithms.p_fed_me, inner_steps=3, tune_epochs=4, **P_FED_ME
  )
  w = _oracle(oracles.p_fed_me, start, inner_steps=3, **P_FED_ME)
  federation.assert_close(last.server.params, w)
  theta = oracles.descend(
    w, tiny.data(), 4, rate=0.05, steps=4, pulled_to=w, strength=4.0
  )
  federation.assert_close(_adapted(algorithm, last.server.params, 4), theta)


def test_p_fed_me_with_one_inner_step_is_fed_avg():
  _, got, _, _ = _run(algorithms.p_fed_me, inner_steps=1, **P_FED_ME)
  product = RATE * P_FED_ME["lam"] * P_FED_ME["inner_rate"]
  _, want, _, _ = _run(
    algorithms.fed_avg,
    optimizer=optax.sgd(product),
    server_optimizer=optax.sgd(P_FED_ME["server_rate"]),
  )
  federation.assert_same(got.server.params, want.server.params)


@pytest.mark.parametrize("alpha_rate", [0.0, 0.5])
def test_apfl_equals_the_loop(alpha_rate):
  options = dict(alpha=0.3, alpha_rate=alpha_rate)
  algorithm, last, _, start = _run(algorithms.apfl, **options)
  w, own = _oracle(oracles.apfl, start, **options)
  federation.assert_close(last.server.params, w)
  for k, (v, share) in own.items():
    want = oracles.axpy(share, v, [(1 - share) * a for a in w])
    federation.assert_close(_of(algorithm, last, k), want)
    _, got = federation.of_client(last.clients, k).tree
    np.testing.assert_allclose(got, share, rtol=1e-4)
  federation.assert_close(_of(algorithm, last, NEVER), w)
  if alpha_rate:
    assert np.ptp([share for _, share in own.values()]) > 1e-3


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_apfl_at_its_ends_is_fed_avg_and_local_only(alpha):
  algorithm, last, _, _ = _run(
    algorithms.apfl, federation.EVERYBODY, alpha=alpha, alpha_rate=0.0
  )
  _, fed_avg = _baseline("fed_avg", everybody=True)
  alone, local = _baseline("local_only", everybody=True)
  federation.assert_same(last.server.params, fed_avg.server.params)
  for k in range(tiny.CLIENTS):
    want = _of(alone, local, k) if alpha else fed_avg.server.params
    federation.assert_same(_of(algorithm, last, k), want)


@pytest.mark.parametrize(
  "name, personal, head_epochs",
  [("fed_per", 1, None), ("lg_fed_avg", 0, None), ("fed_rep", 1, 2)],
)
def test_methods_that_share_a_part_equal_the_loop(name, personal, head_epochs):
  layer = ("first", "second")[personal]
  extra = {"head_epochs": head_epochs} if head_epochs else {}
  algorithm, last, seen, start = _run(
    getattr(algorithms, name), personal=(layer,), **extra
  )
  w, own = _oracle(
    oracles.partly_shared, start, personal=personal, head_epochs=head_epochs
  )
  for k in range(tiny.CLIENTS):
    want = list(w)
    want[personal] = own.get(k, start[personal])
    federation.assert_close(_of(algorithm, last, k), want)
  for sent in (seen[0].up_bytes, seen[0].down_bytes):
    np.testing.assert_array_equal(sent, 4 * start[1 - personal].size)


@pytest.mark.parametrize("name", ["fed_per", "lg_fed_avg", "fed_rep", "fed_bn"])
def test_with_nothing_personal_it_is_fed_avg(name):
  """FedBN finds no normalisation in this model by itself."""
  nothing = {} if name == "fed_bn" else {"personal": ()}
  algorithm, got, _, _ = _run(getattr(algorithms, name), **nothing)
  _, want = _baseline("fed_avg")
  got_params = algorithm.global_params(got.server)
  federation.assert_same(got_params, want.server.params)
  federation.assert_same(_of(algorithm, got, 2), want.server.params)


def _adapted(algorithm, params, k):
  mine = client_data(tiny.data(), jnp.int32(k))
  return jax.jit(algorithm.adapt)(params, mine, jax.random.key(5))


@functools.cache
def _order(t, k, epoch):
  count = int(tiny.data().train.count[k])
  return federation.epoch_order(federation.client_key(t, k), epoch, count)


@pytest.mark.parametrize("first_order", [True, False])
def test_per_fed_avg_equals_the_loop(first_order):
  algorithm, last, _, start = _run(
    algorithms.per_fed_avg, inner_rate=0.3, first_order=first_order
  )
  options = dict(inner_rate=0.3, order=_order)
  w = _oracle(oracles.per_fed_avg, start, hessian=not first_order, **options)
  federation.assert_close(last.server.params, w)
  other = _oracle(oracles.per_fed_avg, start, hessian=first_order, **options)
  assert max(np.abs(a - b).max() for a, b in zip(w, other, strict=True)) > 1e-3
  one_step = oracles.descend(w, tiny.data(), 3, rate=0.3, steps=1)
  federation.assert_close(_adapted(algorithm, last.server.params, 3), one_step)


def test_per_fed_avg_without_inner_step_on_single_examples_is_fed_avg():
  """A batch of one example is support and query at once."""
  data = tiny.data()
  ones = jnp.ones_like(data.train.count)
  data = data._replace(train=data.train._replace(count=ones))
  settings = SETTINGS | {"batch_size": 2}
  runs = [
    federation.run(algorithm, federation.COHORTS, data)[1]
    for algorithm in (
      algorithms.per_fed_avg(tiny.mlp(), inner_rate=0.0, **settings),
      algorithms.fed_avg(tiny.mlp(), **settings),
    )
  ]
  federation.assert_same(runs[0].server.params, runs[1].server.params)


def test_per_fed_avg_names_an_odd_batch():
  with pytest.raises(UserError, match="batch_size 7: .* even"):
    algorithms.per_fed_avg(
      tiny.mlp(), inner_rate=0.1, optimizer=optax.sgd(0.1), batch_size=7
    )


def test_reptile_equals_the_loop_and_fed_avg_with_a_server_rate():
  algorithm, last, _, start = _run(
    algorithms.reptile, server_rate=0.4, tune_epochs=2
  )
  w = _oracle(oracles.reptile, start, server_rate=0.4)
  federation.assert_close(last.server.params, w)
  tuned = oracles.descend(w, tiny.data(), 5, rate=RATE, steps=2)
  federation.assert_close(_adapted(algorithm, last.server.params, 5), tuned)
  _, want, _, _ = _run(algorithms.fed_avg, server_optimizer=optax.sgd(0.4))
  federation.assert_same(last.server.params, want.server.params)


def test_p_fed_me_names_too_few_inner_steps():
  with pytest.raises(UserError, match="inner_steps 0"):
    _run(algorithms.p_fed_me, inner_steps=0, **P_FED_ME)
