"""Local training: batches, steps and optimisers against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_het.core import local
from fedjax_het.core.types import NO_BUDGET, ClientData, Examples


def _client(count, rows=12, budget=NO_BUDGET, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(40, 3)).astype(np.float32)
  y = rng.integers(0, 2, size=40).astype(np.int32)
  index = rng.permutation(40)[:rows].astype(np.int32)
  return ClientData(
    Examples(jnp.asarray(x), jnp.asarray(y)),
    jnp.asarray(index),
    jnp.int32(count),
    jnp.int32(budget),
  )


def _visits(data, *, batch_size, epochs):
  """How often each example of the store is in a batch, by gradient counting.

  The loss is linear in one counter per example, so plain SGD with rate -1 adds
  one per visit.
  """

  def loss(counter, batch, key):
    del key
    row = jnp.argmax(
      jnp.all(batch.x[:, None] == data.examples.x[None], axis=-1), axis=-1
    )
    return jnp.sum(counter[row] * batch.mask)

  result = local.train(
    loss,
    jnp.zeros(40),
    data,
    jax.random.key(3),
    optimizer=optax.sgd(-1.0),
    batch_size=batch_size,
    epochs=epochs,
  )
  return np.asarray(result.params)


@pytest.mark.parametrize("count", [1, 4, 5, 11, 12])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 30])
def test_every_epoch_visits_each_example_once(count, batch_size):
  data = _client(count)
  expected = np.zeros(40)
  expected[np.asarray(data.index)[:count]] = 3
  visits = _visits(data, batch_size=batch_size, epochs=3)
  np.testing.assert_array_equal(visits, expected)


def test_budget_cuts_the_number_of_steps():
  data = _client(12, budget=4)
  assert _visits(data, batch_size=2, epochs=5).sum() == 4 * 2
  steps = local.num_steps(data.count, data.budget, batch_size=2, epochs=5)
  assert int(steps) == 4


def test_no_budget_means_no_training():
  data = _client(12, budget=0)
  result = local.train(
    lambda p, batch, key: jnp.sum(p),
    jnp.ones(2),
    data,
    jax.random.key(0),
    optimizer=optax.adam(1.0),
    batch_size=4,
    epochs=2,
  )
  np.testing.assert_array_equal(result.params, np.ones(2))
  assert float(result.loss) == 0 and bool(result.ok)


@pytest.mark.parametrize(
  "optimizer",
  [optax.sgd(0.1, momentum=0.9), optax.adam(0.05), optax.adamw(0.01)],
)
def test_full_batches_equal_a_plain_optax_loop(optimizer):
  data = _client(9)
  rows = np.asarray(data.index)[:9]
  x, y = data.examples.x[rows], data.examples.y[rows]

  def objective(w, x, y, mask):
    z = x @ w
    each = jnp.logaddexp(0.0, z) - y.astype(jnp.float32) * z
    return jnp.sum(each * mask) / jnp.sum(mask)

  result = local.train(
    lambda w, batch, key: objective(w, batch.x, batch.y, batch.mask),
    jnp.zeros(3),
    data,
    jax.random.key(1),
    optimizer=optimizer,
    batch_size=16,
    epochs=7,
  )
  w = jnp.zeros(3)
  state, losses = optimizer.init(w), []
  for _ in range(7):
    value, grad = jax.value_and_grad(objective)(w, x, y, jnp.ones(9))
    with jax.numpy_dtype_promotion("standard"):  # optax is not strict
      updates, state = optimizer.update(grad, state, w)
    w = optax.apply_updates(w, updates)
    losses.append(value)
  np.testing.assert_allclose(result.params, w, rtol=1e-5)
  np.testing.assert_allclose(result.loss, np.mean(losses), rtol=1e-5)


def test_vmap_over_uneven_clients_equals_one_at_a_time():
  clients = [
    _client(c, budget=b) for c, b in [(12, 9), (1, 50), (5, 2), (7, 0)]
  ]

  def run(data):
    return local.train(
      lambda w, batch, key: jnp.sum((batch.x @ w - 1.0) ** 2 * batch.mask),
      jnp.zeros(3),
      data,
      jax.random.key(5),
      optimizer=optax.sgd(0.01, momentum=0.5),
      batch_size=4,
      epochs=3,
    ).params

  stacked = ClientData(
    clients[0].examples,
    *(
      jnp.stack(field) for field in zip(*[c[1:] for c in clients], strict=True)
    ),
  )
  together = jax.vmap(run, in_axes=(ClientData(None, 0, 0, 0),))(stacked)
  alone = np.stack([run(c) for c in clients])
  np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-7)


def test_divergence_is_flagged():
  result = local.train(
    lambda w, batch, key: jnp.sum(w**4),
    jnp.full(3, 10.0),
    _client(4),
    jax.random.key(0),
    optimizer=optax.sgd(1e6),
    batch_size=4,
    epochs=8,
  )
  assert not bool(result.ok)


def test_all_finite_ignores_integers_and_sees_every_float_leaf():
  assert bool(local.all_finite({"a": jnp.arange(3), "b": jnp.ones(2)}))
  assert bool(local.all_finite(()))
  for bad in (jnp.nan, jnp.inf, -jnp.inf):
    assert not bool(local.all_finite((jnp.ones(2), jnp.float32(bad))))
