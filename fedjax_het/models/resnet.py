"""The residual network for small images."""

import flax.linen as nn
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Model
from fedjax_het.models import layers
from fedjax_het.models.wrap import from_flax


class _ResNet(nn.Module):
  blocks: int  # per stage
  width: int
  num_classes: int
  norm: str
  use_bias: bool
  weight_init: str
  formulation: str | None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = layers.weight_init(self.weight_init)

    def conv(x, features, strides):
      x = layers.Conv(
        features,
        (3, 3),
        init,
        strides=strides,
        # a norm shifts by itself
        use_bias=self.use_bias and self.norm == "none",
        formulation=self.formulation,
      )(x)
      return layers.Norm(self.norm, self.use_bias)(x)

    x = nn.relu(conv(x, self.width, (1, 1)))
    for stage in range(3):
      features = self.width * 2**stage
      for block in range(self.blocks):
        step = 2 if stage and not block else 1
        y = nn.relu(conv(x, features, (step, step)))
        y = conv(y, features, (1, 1))
        grown = features - x.shape[3]
        # He et al.'s option A: the shortcut has no weights
        x = jnp.pad(x[:, ::step, ::step], ((0, 0),) * 3 + ((0, grown),))
        x = nn.relu(x + y)
    x = x.mean((1, 2))
    return nn.Dense(self.num_classes, use_bias=self.use_bias, kernel_init=init)(
      x
    )


def resnet(
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  depth: int = 8,
  width: int = 16,
  norm: str = "static",
  use_bias: bool = True,
  weight_init: str = "he_normal",
  formulation: str | None = None,
) -> Model:
  """The ResNet of the CIFAR-10 experiments of He et al.

  A convolution, then three stages of (depth - 2) / 6 blocks of two 3 x 3
  convolutions with `width`, 2 `width` and 4 `width` channels; the image is
  halved at the second and the third; mean over the image, dense K.

  Args:
    input_shape: (H, W, C).
    num_classes: K.
    depth: 8, 14, 20, 26, ...
    width: channels of the first stage.
    norm: "static" (statistics of the batch at hand, nothing tracked),
      "group", "affine" or "none"; see `models.layers.Norm`.
    use_bias: whether there are biases and, in norms, scale and shift.
    weight_init: "he_normal", or "signed_constant" (+-sqrt(2 / fan_in)).
    formulation: of the convolutions, see `models.conv.conv2d`.

  Returns:
    A `Model`; with depth 20 and biases 269,722 parameters for 32 x 32 x 3 and
    10 classes.

  References:
    He et al., Deep Residual Learning for Image Recognition, 2016,
    arXiv:1512.03385, section 4.2.
  """
  layers.check_image("resnet", input_shape)
  layers.check_norm(norm)
  if depth < 8 or depth % 6 != 2:
    raise UserError(f"depth {depth}: a resnet has 6 n + 2 layers: 8, 14, 20")
  module = _ResNet(
    blocks=(depth - 2) // 6,
    width=width,
    num_classes=num_classes,
    norm=norm,
    use_bias=use_bias,
    weight_init=weight_init,
    formulation=formulation,
  )
  return from_flax(module, input_shape)
