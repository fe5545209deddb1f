"""The multi-layer perceptron."""

from collections.abc import Sequence

import flax.linen as nn

from fedjax_het.core.types import Array, Model
from fedjax_het.models import layers
from fedjax_het.models.wrap import from_flax


class _Mlp(nn.Module):
  features: tuple[int, ...]
  use_bias: bool
  weight_init: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = layers.weight_init(self.weight_init)
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate(self.features):
      x = nn.relu(x) if i else x
      x = nn.Dense(features, use_bias=self.use_bias, kernel_init=init)(x)
    return x


def mlp(
  input_shape: tuple[int, ...],
  num_classes: int,
  hidden: Sequence[int] = (64,),
  *,
  use_bias: bool = True,
  weight_init: str = "he_normal",
) -> Model:
  """Dense layers with ReLU between them.

  Args:
    input_shape: shape of one example, flattened by the model.
    num_classes: K.
    hidden: widths of the hidden layers; () is a linear model.
    use_bias: whether layers have biases; supermask methods want none.
    weight_init: "he_normal", or "signed_constant" (+-sqrt(2 / fan_in)).

  Returns:
    A `Model`; 784-64-10 with biases has 50,890 parameters.
  """
  return from_flax(
    _Mlp((*hidden, num_classes), use_bias, weight_init), input_shape
  )
