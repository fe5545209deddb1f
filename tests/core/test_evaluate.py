"""Evaluation against plain NumPy counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_het.algorithms import example
from fedjax_het.core import evaluate, rounds


def _logits(params, x):
  hidden = np.maximum(
    np.asarray(x, np.float64) @ np.asarray(params["first"]), 0
  )
  return hidden @ np.asarray(params["second"])


@pytest.mark.parametrize("batch_size, chunk", [(1, 1), (3, 1), (32, 4)])
@pytest.mark.parametrize("name", ["fed_avg", "personal_signs"])
def test_global_and_client_accuracy(name, batch_size, chunk):
  model, data = tiny.mlp(), tiny.data()
  algorithm = example(name, model, tiny.INPUT_SHAPE)
  state = rounds.init_state(algorithm, jax.random.key(0), tiny.CLIENTS)
  run = evaluate.make_evaluate(
    algorithm, model, batch_size=batch_size, chunk=chunk
  )
  got = jax.jit(run)(state, data)

  params = algorithm.global_params(state.server)
  logits, y = _logits(params, data.heldout.x), np.asarray(data.heldout.y)
  np.testing.assert_allclose(got["accuracy"], np.mean(logits.argmax(1) == y))
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(
    got["loss"], -np.log(p[np.arange(len(y)), y]).mean(), rtol=1e-5
  )
  want = []
  for k in range(tiny.CLIENTS):
    rows = np.asarray(data.test.index[k])[: int(data.test.count[k])]
    if algorithm.predict is not None:
      mine = jax.tree.map(lambda leaf, k=k: leaf[k], state.clients)
      params = algorithm.predict(state.server, mine, k)
    guess = _logits(params, data.examples.x[rows]).argmax(1)
    want.append(np.mean(guess == np.asarray(data.examples.y)[rows]))
  np.testing.assert_allclose(got["client_accuracy"], want, rtol=1e-6)
  np.testing.assert_allclose(got["client_mean"], np.mean(want), rtol=1e-6)
  np.testing.assert_allclose(got["client_std"], np.std(want), rtol=1e-5)
  np.testing.assert_allclose(got["client_worst_decile"], np.min(want))


def test_worst_decile_is_the_mean_of_the_lowest_tenth():
  accuracy = np.random.default_rng(0).random(25).astype(np.float32)
  got = evaluate.summarise(jax.numpy.asarray(accuracy))
  np.testing.assert_allclose(
    got["client_worst_decile"], np.sort(accuracy)[:3].mean(), rtol=1e-6
  )


def _absolute(out, target):
  """Another loss than squares, and a score that is not minus the loss."""
  error = jnp.abs(out - target)
  return jnp.sum(error, axis=-1), jnp.max(error, axis=-1)


@pytest.mark.parametrize("batch_size, chunk", [(1, 1), (3, 1), (32, 4)])
@pytest.mark.parametrize("name", ["fed_avg", "personal_signs"])
def test_another_measure_of_targets_that_are_vectors(name, batch_size, chunk):
  model, data = tiny.mlp(), tiny.data()
  rng = np.random.default_rng(0)

  def with_targets(examples):
    shape = (len(examples.y), tiny.CLASSES)
    return examples._replace(y=jnp.asarray(rng.normal(size=shape), jnp.float32))

  data = data._replace(
    examples=with_targets(data.examples), heldout=with_targets(data.heldout)
  )
  algorithm = example(name, model, tiny.INPUT_SHAPE)
  state = rounds.init_state(algorithm, jax.random.key(0), tiny.CLIENTS)
  run = evaluate.make_evaluate(
    algorithm, model, batch_size=batch_size, chunk=chunk, measure=_absolute
  )
  got = jax.jit(run)(state, data)

  def error(params, x, y):
    return np.abs(_logits(params, x) - np.asarray(y))

  params = algorithm.global_params(state.server)
  each = error(params, *data.heldout)
  np.testing.assert_allclose(got["loss"], each.sum(1).mean(), rtol=1e-5)
  np.testing.assert_allclose(got["accuracy"], each.max(1).mean(), rtol=1e-5)
  losses, scores = [], []
  for k in range(tiny.CLIENTS):
    rows = np.asarray(data.test.index[k])[: int(data.test.count[k])]
    if algorithm.predict is not None:
      mine = jax.tree.map(lambda leaf, k=k: leaf[k], state.clients)
      params = algorithm.predict(state.server, mine, k)
    each = error(params, data.examples.x[rows], data.examples.y[rows])
    losses.append(each.sum(1).mean())
    scores.append(each.max(1).mean())
  np.testing.assert_allclose(got["client_loss"], losses, rtol=1e-5)
  np.testing.assert_allclose(got["client_accuracy"], scores, rtol=1e-5)
  np.testing.assert_allclose(got["client_mean"], np.mean(scores), rtol=1e-5)


def test_classification_is_the_default_bit_for_bit():
  model, data = tiny.mlp(), tiny.data()
  algorithm = example("fed_avg", model, tiny.INPUT_SHAPE)
  state = rounds.init_state(algorithm, jax.random.key(0), tiny.CLIENTS)
  default, given = (
    jax.jit(evaluate.make_evaluate(algorithm, model, **options))(state, data)
    for options in ({}, {"measure": evaluate.classification})
  )
  assert set(given) - set(default) == {"client_loss"}
  for name, value in default.items():
    np.testing.assert_array_equal(value, given[name], err_msg=name)
  logits = _logits(algorithm.global_params(state.server), data.examples.x)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  want = [
    -np.mean([log_p[i, int(data.examples.y[i])] for i in rows[:count]])
    for rows, count in zip(
      np.asarray(data.test.index), np.asarray(data.test.count), strict=True
    )
  ]
  np.testing.assert_allclose(given["client_loss"], want, rtol=1e-5)


def test_a_judge_goes_before_a_measure():
  model, data = tiny.mlp(), tiny.data()
  algorithm = example("fed_avg", model, tiny.INPUT_SHAPE)
  state = rounds.init_state(algorithm, jax.random.key(0), tiny.CLIENTS)
  run = evaluate.make_evaluate(
    algorithm,
    model,
    judge=lambda state, data: jnp.linspace(0, 1, tiny.CLIENTS),
    measure=evaluate.classification,
  )
  got = jax.jit(run)(state, data)
  np.testing.assert_allclose(got["client_mean"], 0.5, rtol=1e-6)
  assert "client_loss" not in got
