"""Networks as two pure functions, `Model(init, apply)`.

`build` makes one by name; any other flax module goes through `from_flax`.
Everything that a mask acts on is a leaf of two or more dimensions.
"""

import inspect
from typing import Any

from fedjax_het.core.errors import unknown
from fedjax_het.core.types import Model
from fedjax_het.models.conv import conv2d
from fedjax_het.models.convnets import cnn, lenet
from fedjax_het.models.dense import mlp
from fedjax_het.models.lora import Adapted, adapt
from fedjax_het.models.pool import max_pool
from fedjax_het.models.resnet import resnet
from fedjax_het.models.vit import vit
from fedjax_het.models.wrap import from_flax

REGISTRY = {
  "cnn": cnn,
  "lenet": lenet,
  "mlp": mlp,
  "resnet": resnet,
  "vit": vit,
}


def build(
  name: str, input_shape: tuple[int, ...], num_classes: int, **options: Any
) -> Model:
  """The model of this name.

  Args:
    name: a key of `REGISTRY`.
    input_shape: shape of one example, without the batch axis.
    num_classes: K.
    **options: keyword arguments of the factory, e.g. `use_bias=False`.

  Returns:
    A `Model`.

  Raises:
    UserError: unknown name or option, or the shape does not fit the model.

  Example:
    >>> model = build("mlp", (8, 8, 1), 10, hidden=(32,))
  """
  if name not in REGISTRY:
    raise unknown("model", name, REGISTRY)
  factory = REGISTRY[name]
  allowed = list(inspect.signature(factory).parameters)[2:]
  for option in options:
    if option not in allowed:
      raise unknown(f"option of {name}", option, allowed)
  return factory(input_shape, num_classes, **options)


__all__ = [
  "REGISTRY",
  "Adapted",
  "adapt",
  "build",
  "cnn",
  "conv2d",
  "from_flax",
  "lenet",
  "max_pool",
  "mlp",
  "resnet",
  "vit",
]
