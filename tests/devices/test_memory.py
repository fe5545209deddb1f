"""Memory of a client's training, as XLA plans it."""

import optax
import tiny

from fedjax_het import models
from fedjax_het.algorithms import fed_avg
from fedjax_het.devices.memory import training_bytes


def needed(width, batch_size, optimizer):
  model = models.build("mlp", tiny.INPUT_SHAPE, 3, hidden=(width,))
  algorithm = fed_avg(model, optimizer=optimizer, batch_size=batch_size)
  return training_bytes(algorithm, tiny.data())


def test_it_grows_with_model_batch_and_optimiser():
  params = 12 * 512 + 512 + 512 * 3 + 3
  base = needed(512, 4, optax.sgd(0.1))
  # received and sent models, trained parameters at least
  assert base >= 3 * 4 * params
  # the activations of 256 examples, one hidden layer, one float each
  assert needed(512, 260, optax.sgd(0.1)) - base >= 256 * 512 * 4
  assert needed(1024, 4, optax.sgd(0.1)) > 1.8 * base
  # two moments
  assert needed(512, 4, optax.adam(0.1)) - base >= 2 * 4 * params * 0.9
