"""FedBN: FedAvg in which the parameters of normalisation layers stay local.

Down and up: all other parameters, 32 bits each.  Once: the 64-bit seed.  A
client keeps the scales and shifts of its normalisation layers.

Departure: models here keep no running statistics (`models.resnet` with
norm="static" normalises by the batch at hand), so there are none to keep local;
with group or layer norm it is the affine parameters alone.

References:
  Li et al.: FedBN: Federated Learning on Non-IID Features via Local Batch
  Normalization, ICLR 2021, arXiv:2102.07623, Algorithm 1.
"""

import optax

from fedjax_het.algorithms._fed_per import trained_together
from fedjax_het.algorithms._parts import Personal, by_name
from fedjax_het.core.types import Algorithm, Model


def is_norm(name: str) -> bool:
  """Whether a parameter's path has a normalisation layer in it.

  Any part of the path with "norm" in it, or "bn" with or without a number, in
  lower or upper case: "Norm_0/scale", "attention_norm/scale",
  "bn1/bias", "block/bn_2/scale".
  """
  return any(
    "norm" in part or part.rstrip("0123456789_") == "bn"
    for part in name.lower().split("/")
  )


def fed_bn(
  model: Model,
  *,
  personal: Personal = is_norm,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """All parameters train together; those of normalisation are not averaged.

  A model without normalisation gives FedAvg.

  Args:
    model: the network.
    personal: default: the parameters in whose name `is_norm` finds a
      normalisation layer.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.

  Returns:
    An `Algorithm`; metrics: loss.

  Raises:
    UserError: `personal` names an unknown parameter, or all of them.
  """
  return trained_together(
    model,
    by_name(model, personal, none_ok=personal is is_norm),
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
  )
