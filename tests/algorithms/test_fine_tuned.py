"""Adaptation to a client's own data before it is evaluated."""

import federation
import jax
import numpy as np
import optax
import oracles
import oracles_personal
import pytest
import tiny

from fedjax_het import algorithms
from fedjax_het.core import evaluate
from fedjax_het.core.errors import UserError


def _tuned(epochs, rate=0.2):
  model = tiny.mlp()
  return algorithms.fine_tuned(
    algorithms.fed_avg(
      model, optimizer=optax.sgd(0.1), batch_size=federation.BATCH
    ),
    model,
    optimizer=optax.sgd(rate),
    batch_size=federation.BATCH,
    epochs=epochs,
  )


def _evaluate(algorithm, state):
  run = evaluate.make_evaluate(algorithm, tiny.mlp())
  return jax.jit(run)(state, tiny.data())


@pytest.mark.parametrize("epochs", [0, 6])
def test_clients_are_judged_after_tuning_the_global_model_not(epochs):
  """No epochs: FedAvg."""
  algorithm, data = _tuned(epochs), tiny.data()
  _, state, _ = federation.run(algorithm)
  got = _evaluate(algorithm, state)
  plain = _evaluate(algorithm._replace(adapt=None), state)
  np.testing.assert_array_equal(got["accuracy"], plain["accuracy"])
  w = federation.weights(state.server.params)
  want = []
  for k in range(tiny.CLIENTS):
    own = oracles_personal.descend(w, data, k, rate=0.2, steps=epochs)
    test = data._replace(train=data.test)
    x, y = oracles.client_arrays(test, k)
    logits = np.maximum(x @ own[0], 0) @ own[1]
    want.append(np.mean(logits.argmax(1) == y))
  np.testing.assert_allclose(got["client_accuracy"], want, rtol=1e-6)
  same = np.array_equal(got["client_accuracy"], plain["client_accuracy"])
  assert same == (epochs == 0)


def test_tuning_keeps_to_the_clients_budget():
  """A client without budget is judged with the global model itself."""
  algorithm = _tuned(epochs=6)
  _, state, _ = federation.run(algorithm)
  data = tiny.data(budget=[0] * tiny.CLIENTS)
  got = evaluate.client_accuracy(algorithm, tiny.mlp(), state, data)
  plain = algorithm._replace(adapt=None)
  want = evaluate.client_accuracy(plain, tiny.mlp(), state, data)
  np.testing.assert_array_equal(got, want)


def test_tuning_twice_is_refused():
  settings = dict(optimizer=optax.sgd(0.1), batch_size=8)
  with pytest.raises(UserError, match="already adapts"):
    algorithms.fine_tuned(_tuned(1), tiny.mlp(), **settings)
