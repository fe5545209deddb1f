"""FedPer: clients share the lower layers and keep their own top layers.

Down and up: the shared parameters, 32 bits each.  Once: the 64-bit seed of the
personal ones' common start.  A client keeps its personal parameters.

Means are weighted by example counts, as in the paper.  There is no global
model: judge by `client_accuracy`; a client that never trained is evaluated with
the untrained start of its top layers.

References:
  Arivazhagan et al.: Federated Learning with Personalization Layers, 2019,
  arXiv:1912.00818, Algorithms 1 and 2.
"""

import functools

import optax

from fedjax_het.algorithms._parts import (
  Learnt,
  Parts,
  Personal,
  by_name,
  partly_shared,
)
from fedjax_het.core import local
from fedjax_het.core.types import Algorithm, Model


def fed_per(
  model: Model,
  *,
  personal: Personal,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """All parameters train together; the personal ones never leave the client.

  `personal=()` is FedAvg.

  Args:
    model: the network.
    personal: the layers that stay, e.g. `("Dense_1",)` for the top layer of an
      mlp with one hidden layer; or a function of a parameter's name.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.

  Returns:
    An `Algorithm`; metrics: loss.

  Raises:
    UserError: `personal` names no parameter, or all of them.
  """
  return trained_together(
    model,
    by_name(model, personal),
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
  )


def trained_together(
  model: Model,
  parts: Parts,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int,
) -> Algorithm:
  """`partly_shared` in which a client trains both parts in the same steps."""
  loss = local.cross_entropy(model)

  def learn(shared, personal, data, key):
    result = local.train(
      loss,
      parts.join(shared, personal),
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    return Learnt(*parts.split(result.params), result.loss)

  steps = functools.partial(
    local.num_steps, batch_size=batch_size, epochs=epochs
  )
  return partly_shared(model, parts, learn, steps)
