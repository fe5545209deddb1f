"""Ditto: FedAvg, and beside it a personal model held near the global one.

Down: the global model, 32 P bits.  Up: its change, 32 P bits.  A client keeps
its personal model, 32 P bits.

Departures: a personal model starts at the global model of the client's first
round (the paper: at the initial one), and until then the client is evaluated
with the global model.  A budget of steps is shared by halves between the two
trainings.

References:
  Li et al.: Ditto: Fair and Robust Federated Learning Through Personalization,
  ICML 2021, arXiv:2012.04221, Algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _memory
from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.algorithms._two_trainings import TwoTrainings
from fedjax_het.core import local
from fedjax_het.core.types import Algorithm, Array, Model, Upload


def ditto(
  model: Model,
  *,
  lam: Array | float,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  personal_epochs: int | None = None,
  personal_optimizer: optax.GradientTransformation | None = None,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
  """Personal models v_k descend on F_k(v) + lam / 2 ||v - w^t||^2.

  The global model w is FedAvg's, whatever lam.  lam = 0 is FedAvg and, beside
  it, purely local training.

  Args:
    model: the network.
    lam: strength of the pull towards the received model w^t.
    optimizer: of the global model's local training.
    batch_size: B.
    epochs: E, local epochs per round for the global model.
    personal_epochs: for the personal model, default E.
    personal_optimizer: default `optimizer`.
    server_optimizer: default `optax.sgd(1.0)`, plain averaging.

  Returns:
    An `Algorithm`; metrics: loss of the global model's training,
    personal_loss, without the pull.
  """
  personal_epochs = epochs if personal_epochs is None else personal_epochs
  trainings = TwoTrainings(batch_size, epochs, personal_epochs)
  gradient = jax.value_and_grad(local.cross_entropy(model))

  def client(params, kept, data, key):
    shared_key, personal_key = jax.random.split(key)
    first, second = trainings.share(data)
    shared = local.follow(
      gradient,
      params,
      first,
      shared_key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    personal = local.follow(
      local.corrected(gradient, local.pull(params, lam)),
      _memory.recall(kept, params),
      second,
      personal_key,
      optimizer=personal_optimizer or optimizer,
      batch_size=batch_size,
      epochs=personal_epochs,
    )
    return Upload(
      optax.tree.sub(shared.params, params),
      data.count.astype(jnp.float32),
      _memory.remember(kept, personal.params, data),
      {"loss": shared.loss, "personal_loss": personal.loss},
    )

  return fed_avg(
    model,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    server_optimizer=server_optimizer,
  )._replace(
    client=client,
    local_steps=trainings.num_steps,
    init_client=lambda key: _memory.nothing(jax.eval_shape(model.init, key)),
    predict=lambda state, kept, client_id: _memory.recall(kept, state.params),
  )
