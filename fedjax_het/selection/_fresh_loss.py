"""The clients' losses at the current model, as a server would ask for them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_het.core import local
from fedjax_het.core.cohort import client_data
from fedjax_het.core.local import Batch
from fedjax_het.core.rounds import TrainState
from fedjax_het.core.types import Algorithm, Array, FederatedData, Model

FreshLoss = Callable[[TrainState, FederatedData, Array], Array]


def fresh_loss(
  algorithm: Algorithm,
  model: Model,
  *,
  batch_size: int = 32,
  max_batches: int | None = None,
) -> FreshLoss:
  """Builds (state, data, ids i32[d]) -> f32[d], mean loss on training rows.

  Args:
    algorithm: gives the global model.
    model: the network.
    batch_size: B.
    max_batches: of the client's rows in their order (which is random, see
      `data.federated`); None takes all.
  """
  cross_entropy = local.cross_entropy(model)

  def losses(state, data, ids):
    params = algorithm.global_params(state.server)

    def one(client):
      mine = client_data(data, client)
      count = mine.count
      if max_batches is not None:
        count = jnp.minimum(count, max_batches * batch_size)

      def step(carry):
        start, total = carry
        position = start + jnp.arange(batch_size)
        real = position < count
        examples = mine.take(jnp.where(real, position, 0))
        mask = real.astype(jnp.float32)
        value = cross_entropy(params, Batch(*examples, mask), state.key)
        return start + batch_size, total + value * jnp.sum(mask)

      _, total = jax.lax.while_loop(
        lambda carry: carry[0] < count, step, (jnp.int32(0), jnp.float32(0))
      )
      return total / jnp.maximum(count, 1).astype(jnp.float32)

    return jax.lax.map(one, ids)

  return losses
