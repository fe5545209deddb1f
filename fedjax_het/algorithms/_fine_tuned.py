"""Fine-tuning: each client trains the global model a little before using it.

Nothing more travels than in the method that is wrapped, and clients keep
nothing: tuning happens where a client is evaluated, on its own training data.
FedAvg + fine-tuning is the baseline that every personalised method must beat.

References:
  Wang et al.: Federated Evaluation of On-device Personalization, 2019,
  arXiv:1910.10252.
"""

import optax

from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Model


def fine_tuned(
  algorithm: Algorithm,
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """`algorithm` whose clients are evaluated after training on their own data.

  Args:
    algorithm: any method without such a step of its own; its training is not
      changed.
    model: the network.
    optimizer: of the tuning, made afresh.
    batch_size: B of the tuning.
    epochs: passes over the client's training data, at most its budget of steps;
      0 is `algorithm` itself.

  Returns:
    An `Algorithm`.

  Raises:
    UserError: `algorithm` already adapts to each client.

  Example:
    >>> from fedjax_het.algorithms import fed_avg
    >>> from fedjax_het.models import mlp
    >>> net = mlp((8, 8, 1), 10)
    >>> settings = dict(optimizer=optax.sgd(0.1), batch_size=32)
    >>> tuned = fine_tuned(fed_avg(net, **settings), net, **settings)
  """
  if algorithm.adapt is not None:
    raise UserError(
      "this algorithm already adapts to each client before it is evaluated: "
      "wrap one that does not, e.g. fed_avg"
    )
  loss = local.cross_entropy(model)

  def adapt(params, data, key):
    return local.train(
      loss,
      params,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    ).params

  return algorithm._replace(adapt=adapt)
