"""A small vision transformer: an image as a short sequence of patches.

A patch is a rectangle of pixels, by default a whole row of the image; each is
embedded by one matrix and a learned position.  Every token attends to every
token, and the head sees the mean over tokens.

Shape legend: B images, T patches, D pixels of a patch, H width, K classes, N
heads, C channels of a head.

References:
  Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv:2010.11929 (which
  has a class token; the mean is as good and has no parameters).
"""

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key, Model, Params
from fedjax_het.models._blocks import Shape, check, init_layers, run_layers


def vit(
  input_shape: tuple[int, ...],
  num_classes: int,
  patch: tuple[int, int] | None = None,
  *,
  width: int = 64,
  layers: int = 2,
  heads: int = 4,
  hidden: int = 256,
) -> Model:
  """Builds a vision transformer.

  Args:
    input_shape: (rows, columns, channels) of one image.
    num_classes: K.
    patch: (rows, columns) of a patch, which divide the image's; default: one
      row of the image.
    width: H, a multiple of 2 `heads`.
    layers, heads: L, N.
    hidden: F, width of the MLP (GELU) of each layer.

  Returns:
    A `Model`; its layers are "layer_0", ... with the dense matrices q, k, v,
    o, up and down.  28 x 28 pixels in rows and 10 classes take 102,858
    parameters.

  Raises:
    UserError: sizes that do not fit each other.
  """
  if len(input_shape) != 3:
    raise UserError(
      f"a vision transformer takes images (rows, columns, channels), got "
      f"input_shape {tuple(input_shape)}"
    )
  rows, columns, channels = input_shape
  tall, wide = (1, columns) if patch is None else patch
  if min(tall, wide) < 1 or rows % tall or columns % wide:
    raise UserError(
      f"patches of {tall} x {wide} pixels do not tile {rows} x {columns}: give "
      "sizes that divide them"
    )
  if heads < 1 or width % (2 * heads):
    raise UserError(
      f"width {width} over {heads} heads: give a multiple of {2 * heads}"
    )
  shape = Shape(
    width=width,
    layers=layers,
    heads=heads,
    kv_heads=heads,
    head_width=width // heads,
    hidden=hidden,
    mlp="gelu",
  )
  check(shape)
  grid = rows // tall, columns // wide
  tokens, pixels = grid[0] * grid[1], tall * wide * channels

  def init(key: Key) -> Params:
    others = [pixels * width, tokens * width, width * num_classes]
    blocks, (embed, place, head) = init_layers(shape, key, others)
    return {
      "embed": {
        "kernel": embed.reshape(pixels, width) * pixels**-0.5,
        "position": place.reshape(tokens, width) * 0.02,
      },
      **blocks,
      "head": {
        "kernel": head.reshape(width, num_classes) * width**-0.5,
        "bias": jnp.zeros(num_classes),
      },
    }

  def one(params: Params, patches: Array) -> Array:
    x = patches @ params["embed"]["kernel"] + params["embed"]["position"]
    x = run_layers(shape, params, x, _attend)
    head = params["head"]
    return jnp.mean(x, 0) @ head["kernel"] + head["bias"]

  def apply(params: Params, x: Array) -> Array:
    if x.shape[1:] != tuple(input_shape):
      raise UserError(
        f"this model takes x [B, {rows}, {columns}, {channels}], got "
        f"{list(x.shape)}: reshape the examples or build it for their shape"
      )
    cut = x.reshape(-1, grid[0], tall, grid[1], wide, channels)
    cut = cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, tokens, pixels)
    return jax.vmap(one, (None, 0))(params, cut)

  return Model(init, apply)


def _attend(q: Array, k: Array, v: Array) -> Array:
  """Softmax attention of all tokens to all, [T, N, C] each."""
  score = jnp.einsum("tnc,snc->nts", q, k)
  score = score / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))
  return jnp.einsum("nts,snc->tnc", jax.nn.softmax(score, -1), v)
