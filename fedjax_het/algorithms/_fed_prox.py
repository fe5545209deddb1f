"""FedProx: FedAvg whose clients are held near the model they received.

Down: the global model, 32 P bits.  Up: its change, 32 P bits.

Departures: the paper samples clients in proportion to their data and averages
them evenly; here sampling is the selection's business and the mean is weighted
by example counts.  Its inexact solutions (gamma) are the step budgets.

References:
  Li et al.: Federated Optimization in Heterogeneous Networks, MLSys 2020,
  arXiv:1812.06127, Algorithm 2.
"""

import jax
import optax

from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.core import local
from fedjax_het.core.types import Algorithm, Array, Model


def fed_prox(
  model: Model,
  *,
  mu: Array | float,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  server_optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
  """Clients descend on h_k(w; w^t) = F_k(w) + mu / 2 ||w - w^t||^2.

  mu = 0 is FedAvg.

  Args:
    model: the network.
    mu: strength of the proximal term, >= 0; the paper tries 0.001 to 1.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.
    server_optimizer: default `optax.sgd(1.0)`, plain averaging.

  Returns:
    An `Algorithm`; metrics: loss, without the proximal term.
  """
  gradient = jax.value_and_grad(local.cross_entropy(model))
  return fed_avg(
    model,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    server_optimizer=server_optimizer,
    gradient=lambda received: local.corrected(
      gradient, local.pull(received, mu)
    ),
  )
