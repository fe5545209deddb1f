"""LG-FedAvg: clients keep their own representation and share the top layers.

Down and up: the shared top layers, 32 bits a parameter, usually a small part of
the network.  Once: the 64-bit seed of the personal ones' common start.  A
client keeps its lower layers.

It is FedPer turned upside down.  The paper's optional auxiliary losses on the
local representation are left out, and training starts from scratch (the
released code starts from a network trained by FedAvg).

References:
  Liang et al.: Think Locally, Act Globally: Federated Learning with Local and
  Global Representations, 2020, arXiv:2001.01523, Algorithm 1.
"""

import optax

from fedjax_het.algorithms._fed_per import trained_together
from fedjax_het.algorithms._parts import Personal, by_name
from fedjax_het.core.types import Algorithm, Model


def lg_fed_avg(
  model: Model,
  *,
  personal: Personal,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """All parameters train together; only the top layers are averaged.

  `personal=()` is FedAvg.

  Args:
    model: the network.
    personal: the lower layers, which stay, e.g. `("Dense_0",)` for the hidden
      layer of an mlp; or a function of a parameter's name.
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
