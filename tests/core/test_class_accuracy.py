"""Accuracy by class, against scikit-learn's recall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from sklearn.metrics import recall_score

from fedjax_het.algorithms import example
from fedjax_het.core import rounds
from fedjax_het.core.class_accuracy import make_class_accuracy


@pytest.mark.parametrize("batch_size", [7, 1024])
def test_it_is_the_recall(batch_size):
  data, model = tiny.data(), tiny.mlp()
  algorithm = example("fed_avg", model, tiny.INPUT_SHAPE)
  state = rounds.init_state(algorithm, jax.random.key(0), tiny.CLIENTS)
  evaluate = make_class_accuracy(
    algorithm, model, tiny.CLASSES + 1, batch_size=batch_size
  )
  got = jax.jit(evaluate)(state, data)["class_accuracy"]
  guess = jnp.argmax(model.apply(state.server.params, data.heldout.x), axis=-1)
  want = recall_score(data.heldout.y, guess, average=None)
  np.testing.assert_allclose(got[: tiny.CLASSES], want, rtol=1e-6)
  assert np.isnan(got[tiny.CLASSES])  # a class that nobody has
