"""Evaluation against plain NumPy counts."""

import jax
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
