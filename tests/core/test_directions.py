"""What local training can follow besides a plain gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_het.core import cohort, local, reduce

KEY = jax.random.key(2)


def _client(k=1, budget=None):
  return cohort.client_data(tiny.data(budget=budget), jnp.int32(k))


@pytest.mark.parametrize("batch_size", [1, 6, 32])
@pytest.mark.parametrize("budget", [None, [2] * tiny.CLIENTS])
def test_mean_gradient_is_that_of_the_mean_loss(batch_size, budget):
  """Over all examples in uneven batches, whatever the budget of steps."""
  model, data = tiny.mlp(), _client(budget=budget)
  params = model.init(KEY)
  got = local.mean_gradient(
    local.cross_entropy(model), params, data, KEY, batch_size=batch_size
  )
  rows = data.index[: int(data.count)]

  def mean_loss(params):
    logits = model.apply(params, data.examples.x[rows])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, data.examples.y[rows]
    ).mean()

  want = jax.grad(mean_loss)(params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    got,
    want,
  )


def test_mean_gradient_of_a_client_without_budget_is_zero():
  model, data = tiny.mlp(), _client(budget=[0] * tiny.CLIENTS)
  got = local.mean_gradient(
    local.cross_entropy(model), model.init(KEY), data, KEY, batch_size=4
  )
  assert not any(leaf.any() for leaf in jax.tree.leaves(got))


def test_a_pull_is_the_gradient_of_a_proximal_term():
  model, data = tiny.mlp(), _client()
  params, center = model.init(KEY), model.init(jax.random.key(3))
  plain = local.cross_entropy(model)

  def proximal(params, batch, key):
    square = optax.tree.norm(optax.tree.sub(params, center), squared=True)
    return plain(params, batch, key) + 0.35 * square

  settings = dict(optimizer=optax.sgd(0.1), batch_size=4, epochs=2)
  got = local.follow(
    local.corrected(jax.value_and_grad(plain), local.pull(center, 0.7)),
    params,
    data,
    KEY,
    **settings,
  )
  want = local.train(proximal, params, data, KEY, **settings)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    got.params,
    want.params,
  )
  assert got.loss < want.loss  # only the second reports the proximal term


def test_moments_can_go_on():
  """Two trainings that hand the moments on are a loop of optax updates."""
  data, optimizer = _client(), optax.sgd(0.1, momentum=0.9)
  settings = dict(optimizer=optimizer, batch_size=32, epochs=1)

  def loss(w, batch, key):
    del batch, key
    return jnp.sum(w**2)

  w = jnp.arange(3.0)
  first = local.train(loss, w, data, KEY, **settings)
  second = local.train(
    loss, first.params, data, KEY, opt_state=first.opt_state, **settings
  )
  trace = np.zeros(3)
  want = np.arange(3.0)
  for _ in range(2):
    trace = 0.9 * trace + 2 * want
    want = want - 0.1 * trace
  np.testing.assert_allclose(second.params, want, rtol=1e-6)


def test_mean_and_weight_says_how_much_arrived():
  reducer = reduce.mean_and_weight()
  messages = {"a": jnp.asarray([[1.0, 2.0], [5.0, 6.0], [7.0, 7.0]])}
  weights = jnp.asarray([1.0, 3.0, 0.0])
  one = jax.tree.map(lambda leaf: leaf[0], messages)
  mean, weight = reducer.finish(
    reducer.add(reducer.zero(one), messages, weights)
  )
  np.testing.assert_allclose(mean["a"], [4.0, 5.0])
  assert weight == 4
