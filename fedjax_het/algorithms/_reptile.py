"""Reptile: a start from which a few steps on a client's data go far.

Down: the global model, 32 P bits.  Up: its change, 32 P bits.

Clients are Reptile's tasks.  As a federated method it is FedAvg with a server
rate, evaluated after fine-tuning; tasks are weighted by their example counts
(the paper: evenly), so that the identity holds.

References:
  Nichol, Achiam and Schulman: On First-Order Meta-Learning Algorithms, 2018,
  arXiv:1803.02999, section 2, batch version.
  Jiang et al.: Improving Federated Learning Personalization via Model Agnostic
  Meta Learning, 2019, arXiv:1909.12488.
"""

import optax

from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.algorithms._fine_tuned import fine_tuned
from fedjax_het.core.types import Algorithm, Array, Model


def reptile(
  model: Model,
  *,
  server_rate: Array | float,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  tune_epochs: int = 1,
) -> Algorithm:
  """w += server_rate sum_k n_k (w_k - w) / sum_k n_k, then tunes per client.

  Args:
    model: the network.
    server_rate: epsilon in (0, 1]; 1 is FedAvg + fine-tuning.
    optimizer: of the clients' training and of their tuning.
    batch_size: B.
    epochs: E, local epochs per round.
    tune_epochs: epochs on its own data before a client is evaluated.

  Returns:
    An `Algorithm`; metrics: loss.
  """
  return fine_tuned(
    fed_avg(
      model,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
      server_optimizer=optax.sgd(server_rate),
    ),
    model,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=tune_epochs,
  )
