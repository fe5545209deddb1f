"""Two small convolutional networks: LeNet-5 and the CNN of the FedAvg paper."""

import flax.linen as nn

from fedjax_het.core.types import Array, Model
from fedjax_het.models import layers
from fedjax_het.models.wrap import from_flax


class _ConvNet(nn.Module):
  """Convolutions of 5 x 5, each pooled, then dense layers; ReLU between."""

  convs: tuple[tuple[int, str], ...]  # (channels, padding)
  dense: tuple[int, ...]
  use_bias: bool
  weight_init: str
  formulation: str | None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = layers.weight_init(self.weight_init)
    for channels, padding in self.convs:
      x = layers.Conv(
        channels,
        (5, 5),
        init,
        padding=padding,
        use_bias=self.use_bias,
        pool=True,
        formulation=self.formulation,
      )(x)
      x = nn.relu(x)
    x = x.reshape(x.shape[0], -1)
    for i, features in enumerate(self.dense):
      x = nn.relu(x) if i else x
      x = nn.Dense(
        features,
        use_bias=self.use_bias,
        kernel_init=init,
        dot_general=layers.tall_dot_general,
      )(x)
    return x


def lenet(
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  use_bias: bool = True,
  weight_init: str = "he_normal",
  formulation: str | None = None,
) -> Model:
  """LeNet-5 with ReLU and max-pooling: 6 and 16 channels, dense 120, 84, K.

  Args:
    input_shape: (H, W, C), 12 x 12 or more.
    num_classes: K.
    use_bias: whether layers have biases; supermask methods want none.
    weight_init: "he_normal", or "signed_constant" (+-sqrt(2 / fan_in)).
    formulation: of the convolutions, see `models.conv.conv2d`.

  Returns:
    A `Model`; 61,706 parameters for 28 x 28 x 1 and 10 classes.

  References:
    LeCun et al., Gradient-Based Learning Applied to Document Recognition,
    1998 (with trained connections between all channels, and padding in place
    of its 32 x 32 images).
  """
  layers.check_image("lenet", input_shape)
  convs = (6, "SAME"), (16, "VALID")
  dense = 120, 84, num_classes
  module = _ConvNet(convs, dense, use_bias, weight_init, formulation)
  return from_flax(module, input_shape)


def cnn(
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  use_bias: bool = True,
  weight_init: str = "he_normal",
  formulation: str | None = None,
) -> Model:
  """The CNN of the FedAvg paper: 32 and 64 channels of 5 x 5, dense 512, K.

  Args:
    input_shape: (H, W, C), 4 x 4 or more.
    num_classes: K.
    use_bias: whether layers have biases; supermask methods want none.
    weight_init: "he_normal", or "signed_constant" (+-sqrt(2 / fan_in)).
    formulation: of the convolutions, see `models.conv.conv2d`.

  Returns:
    A `Model`; 1,663,370 parameters for 28 x 28 x 1 and 10 classes.

  References:
    McMahan et al., Communication-Efficient Learning of Deep Networks from
    Decentralized Data, 2017, arXiv:1602.05629.
  """
  layers.check_image("cnn", input_shape)
  convs = (32, "SAME"), (64, "SAME")
  module = _ConvNet(
    convs, (512, num_classes), use_bias, weight_init, formulation
  )
  return from_flax(module, input_shape)
