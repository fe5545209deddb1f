"""FedRep: clients first fit their own heads, then train the common body.

Down and up: the shared body, 32 bits a parameter.  Once: the 64-bit seed of the
heads' common start.  A client keeps its head.

The body is averaged by example counts, as in the released code (the paper:
evenly).  A budget of steps is shared by halves between head and body.  There is
no global model: judge by `client_accuracy`.

References:
  Collins et al.: Exploiting Shared Representations for Personalized Federated
  Learning, ICML 2021, arXiv:2102.07078, Algorithm 1.
"""

import jax
import optax

from fedjax_het.algorithms._parts import (
  Learnt,
  Personal,
  by_name,
  partly_shared,
)
from fedjax_het.algorithms._two_trainings import TwoTrainings
from fedjax_het.core import local
from fedjax_het.core.types import Algorithm, Model


def fed_rep(
  model: Model,
  *,
  personal: Personal,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  head_epochs: int = 5,
  epochs: int = 1,
) -> Algorithm:
  """Trains the head on the frozen body, then the body under the frozen head.

  `personal=()` is FedAvg.

  Args:
    model: the network.
    personal: the head, e.g. `("Dense_1",)`; or a function of a parameter's
      name.
    optimizer: of both phases, made afresh for each.
    batch_size: B.
    head_epochs: epochs of the head per round (the paper's tau, in epochs).
    epochs: E, epochs of the body per round.

  Returns:
    An `Algorithm`; metrics: loss, of the body's phase.

  Raises:
    UserError: `personal` names no parameter, or all of them.
  """
  parts = by_name(model, personal)
  cross_entropy = local.cross_entropy(model)
  head_epochs = head_epochs if parts.any_personal else 0
  trainings = TwoTrainings(batch_size, head_epochs, epochs)

  def learn(shared, personal, data, key):
    head_key, body_key = jax.random.split(key)
    first, second = trainings.share(data)
    head = local.train(
      lambda head, batch, key: cross_entropy(
        parts.join(shared, head), batch, key
      ),
      personal,
      first,
      head_key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=head_epochs,
    )
    body = local.train(
      lambda body, batch, key: cross_entropy(
        parts.join(body, head.params), batch, key
      ),
      shared,
      second,
      body_key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    return Learnt(body.params, head.params, body.loss)

  return partly_shared(model, parts, learn, trainings.num_steps)
