"""Flax layers and initialisers that the models share."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array, Key
from fedjax_het.models.conv import conv2d
from fedjax_het.models.pool import max_pool


def signed_constant(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
  """+-sqrt(2 / fan_in), each sign with probability 1/2.

  He-normal's standard deviation with the magnitude taken out of the draw: a
  supermask then chooses among signs only.

  Args:
    key: typed PRNG key.
    shape: of a kernel, [..., in, out]; fan_in is all but the last.
    dtype: of the result.

  References:
    Zhou et al., Deconstructing Lottery Tickets, 2019, arXiv:1905.01067.
  """
  scale = math.sqrt(2 / math.prod(shape[:-1]))
  return jax.random.rademacher(key, shape, dtype) * jnp.asarray(scale, dtype)


WEIGHT_INITS = {
  "he_normal": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),
  "signed_constant": signed_constant,
}


def weight_init(name: str) -> nn.initializers.Initializer:
  """The initialiser of this name, or a `UserError`."""
  if name not in WEIGHT_INITS:
    raise unknown("weight_init", name, WEIGHT_INITS)
  return WEIGHT_INITS[name]


class Conv(nn.Module):
  """`conv2d`, max-pooling if `pool`, and a bias [O] if `use_bias`.

  The bias comes after the pooling, with which it commutes (as relu does): a
  quarter of the work.
  """

  features: int
  kernel_size: tuple[int, int]
  kernel_init: nn.initializers.Initializer
  strides: tuple[int, int] = (1, 1)
  padding: str = "SAME"
  use_bias: bool = True
  pool: bool = False
  formulation: str | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (*self.kernel_size, x.shape[3], self.features)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    y = conv2d(
      x,
      kernel,
      padding=self.padding,
      strides=self.strides,
      formulation=self.formulation,
    )
    y = max_pool(y) if self.pool else y
    return add_bias(self, y) if self.use_bias else y


def add_bias(module: nn.Module, x: Array) -> Array:
  """x [..., C] plus a parameter "bias" [C] of `module`, zero at first."""
  bias = module.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
  return x + jnp.expand_dims(bias, range(x.ndim - 1))


def tall_dot_general(x: Array, w: Array, dims: Any, **kwargs: Any) -> Array:
  """`lax.dot_general` for a small batch against a tall matrix of weights.

  Turning the small operand makes XLA CPU read w as it lies instead of packing
  it first: 1.5x for [20, 3136] by [3136, 512].  Give it to
  `nn.Dense(dot_general=...)`.
  """
  (((_,), (_,)), _) = dims
  x = lax.optimization_barrier(x.T)
  return lax.dot_general(x, w, (((0,), (0,)), ((), ())), **kwargs)


class Norm(nn.Module):
  """Normalisation without state.

  x is brought to mean 0 and variance 1, then scaled and shifted per channel.

  kind: what the mean and the variance are taken over:
    "static": the batch, height and width of the batch at hand, in training
      and in evaluation alike; nothing is tracked.  HeteroFL's static batch
      normalisation, except that HeteroFL collects global statistics for
      evaluation at the end, which needs a pass over the clients' data.  An
      example's logits so depend on its batch: evaluate in batches of a fair
      size.  Rows that pad a batch are real examples a second time (the engine
      pads with the client's own rows), they shift the statistics a little and
      break nothing; so do batches of one example (statistics over its pixels).
    "group": each example alone, over height, width and a group of at most
      `group_size` channels.
    "affine": nothing, scale and shift only: the twin with the same parameters
      that SynFlow scores.
    "none": the identity without parameters.
  use_bias: whether there are scale and shift at all (they are leaves of one
    dimension, which masks never touch).

  References:
    Diao et al., HeteroFL, 2021, arXiv:2010.01264, section 3.  Wu and He, Group
    Normalization, 2018, arXiv:1803.08494.
  """

  kind: str
  use_bias: bool = True
  group_size: int = 8

  @nn.compact
  def __call__(self, x: Array) -> Array:
    check_norm(self.kind)
    if self.kind == "none":
      return x
    if self.kind == "static":
      x = _standardise(x, (0, 1, 2))
    elif self.kind == "group":
      groups = math.gcd(x.shape[3], max(1, x.shape[3] // self.group_size))
      parts = x.reshape(*x.shape[:3], groups, -1)
      x = _standardise(parts, (1, 2, 4)).reshape(x.shape)
    if not self.use_bias:
      return x
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
    return add_bias(self, x * scale[None, None, None])


_NORMS = ("static", "group", "affine", "none")


def check_norm(kind: str) -> None:
  """Raises a `UserError` if there is no such kind of `Norm`."""
  if kind not in _NORMS:
    raise unknown("norm", kind, _NORMS)


def _standardise(x: Array, axes: tuple[int, ...]) -> Array:
  x = x - x.mean(axes, keepdims=True)
  variance = jnp.square(x).mean(axes, keepdims=True)
  return x * lax.rsqrt(variance + jnp.asarray(1e-5, x.dtype))


def check_image(name: str, input_shape: tuple[int, ...]) -> None:
  """Raises a `UserError` if `input_shape` is not (H, W, C)."""
  if len(input_shape) != 3:
    raise UserError(
      f"{name} takes images, input_shape (height, width, channels), got "
      f"{tuple(input_shape)}: reshape the examples or choose an mlp"
    )
