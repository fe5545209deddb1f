"""Accuracy of the global model on each class of the held-out data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_het.core.rounds import TrainState
from fedjax_het.core.types import Algorithm, Array, FederatedData, Model


def make_class_accuracy(
  algorithm: Algorithm,
  model: Model,
  num_classes: int,
  *,
  batch_size: int = 1024,
) -> Callable[[TrainState, FederatedData], dict[str, Array]]:
  """Builds an evaluation by class.

  Args:
    algorithm: gives the global model.
    model: the network.
    num_classes: K.
    batch_size: examples per forward pass.

  Returns:
    (state, data) -> {"class_accuracy": f32[K]}; NaN for a class that no
    held-out example has.
  """

  def evaluate(state, data):
    params = algorithm.global_params(state.server)
    size = data.heldout.y.shape[0]
    width = min(batch_size, size)

    def one(batch):
      position = batch * width + jnp.arange(width)
      row = jnp.minimum(position, size - 1)
      label = data.heldout.y[row]
      guess = jnp.argmax(model.apply(params, data.heldout.x[row]), axis=-1)
      member = jax.nn.one_hot(label, num_classes)
      member = member * (position < size).astype(jnp.float32)[:, None]
      hit = (guess == label).astype(jnp.float32)
      return hit @ member, jnp.sum(member, axis=0)

    hits, counts = jax.lax.map(one, jnp.arange(-(-size // width)))
    return {"class_accuracy": jnp.sum(hits, axis=0) / jnp.sum(counts, axis=0)}

  return evaluate
