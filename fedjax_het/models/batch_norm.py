"""Batch normalisation without hidden state: the statistics are parameters.

A `Model` is two pure functions, so the running mean and variance are leaves of
the parameter tree, "mean" and "var" [C] beside "scale" and "bias".  In training
a layer normalises by the batch at hand; in evaluation by those leaves.  What
moves them is the optimiser: their "gradient" is their distance from the batch's
statistics, whatever the loss, so that a step of SGD with rate r is a running
average with momentum 1 - r.  Any federated method then trains, sends, counts
and averages them like all other parameters that are never pruned.

Made for SGD without momentum and without a gradient that is scaled by others:
an adaptive optimiser moves the statistics by its own rule.

References:
  Ioffe and Szegedy, Batch Normalization, ICML 2015, arXiv:1502.03167.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.types import Array, Model, Params
from fedjax_het.models import layers

_EPSILON = 1e-5


class BatchNormModel(NamedTuple):
  """One set of parameters, three networks.

  training: normalises by the batch at hand; for algorithms.
  evaluation: normalises by the "mean" and "var" among the parameters.
  affine: without normalisation and biases, for SynFlow (see `masks.synflow`).
  collect: (params, x f32[B, ...], weight f32[B]) -> statistics: for each
    normalising layer {"mean": f32[C], "var": f32[C]} of the weighted batch, in
    the order of the layers, each layer before normalised by the same batch.
  """

  training: Model
  evaluation: Model
  affine: Model
  collect: Callable[[Params, Array, Array], list[dict[str, Array]]]


def mlp_with_batch_norm(
  input_shape: tuple[int, ...],
  num_classes: int,
  hidden: Sequence[int] = (256, 128),
) -> BatchNormModel:
  """Dense layers, each but the last normalised and followed by ReLU.

  Args:
    input_shape: shape of one example, flattened by the model.
    num_classes: K.
    hidden: widths of the hidden layers, one or more.

  Returns:
    A `BatchNormModel` with parameters {"dense_0": {"kernel"}, "norm_0":
    {"scale", "bias", "mean", "var"}, ..., "dense_n": {"kernel", "bias"}}.
  """
  sizes = [1, *hidden, num_classes]
  for size in input_shape:
    sizes[0] *= size
  last = len(sizes) - 2
  kernel_init = layers.weight_init("he_normal")

  def init(key):
    params = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
      kernel = kernel_init(
        jax.random.fold_in(key, i), (fan_in, fan_out), jnp.float32
      )
      if i == last:
        bias = jnp.zeros(fan_out, jnp.float32)
        params[f"dense_{i}"] = {"kernel": kernel, "bias": bias}
        continue
      params[f"dense_{i}"] = {"kernel": kernel}
      ones, zeros = jnp.ones(fan_out), jnp.zeros(fan_out)
      params[f"norm_{i}"] = {
        "scale": ones,
        "bias": zeros,
        "mean": zeros,
        "var": ones,
      }
    return params

  def forward(normalise, params, x):
    x = x.reshape(x.shape[0], -1)
    for i in range(last):
      norm = params[f"norm_{i}"]
      x = normalise(x @ params[f"dense_{i}"]["kernel"], norm)
      x = jax.nn.relu(x * norm["scale"][None] + norm["bias"][None])
    top = params[f"dense_{last}"]
    return x @ top["kernel"] + top["bias"][None]

  def without_biases(params):
    return {
      name: layer | {"bias": jnp.zeros_like(layer["bias"])}
      if "bias" in layer
      else layer
      for name, layer in params.items()
    }

  def applying(normalise):
    return Model(init, lambda params, x: forward(normalise, params, x))

  def collect(params, x, weight):
    found = []

    def by_weight(x, norm):
      del norm
      mean, var = statistics(x, weight)
      found.append({"mean": mean, "var": var})
      return _standardise(x, mean, var)

    forward(by_weight, params, x)
    return found

  return BatchNormModel(
    applying(lambda x, norm: _by_batch(x, norm["mean"], norm["var"])),
    applying(lambda x, norm: _standardise(x, norm["mean"], norm["var"])),
    Model(
      init,
      lambda params, x: forward(lambda x, norm: x, without_biases(params), x),
    ),
    collect,
  )


def with_statistics(
  params: Params, found: Sequence[dict[str, Array]]
) -> Params:
  """The parameters with the means and variances of `collect`."""
  names = [f"norm_{i}" for i in range(len(found))]
  return params | {
    name: params[name] | one for name, one in zip(names, found, strict=True)
  }


def statistics(x: Array, weight: Array) -> tuple[Array, Array]:
  """Mean and variance f32[C] of the rows x f32[B, C], weighted by f32[B]."""
  share = weight / jnp.maximum(jnp.sum(weight), 1e-9)
  mean = share @ x
  return mean, share @ jnp.square(x - mean[None])


def _standardise(x: Array, mean: Array, var: Array) -> Array:
  # plain SGD keeps var >= 0, other optimisers need not
  scale = jax.lax.rsqrt(jnp.maximum(var, 0) + _EPSILON)
  return (x - mean[None]) * scale[None]


@jax.custom_vjp
def _by_batch(x: Array, mean: Array, var: Array) -> Array:
  """x normalised by itself; mean and var are only moved by the gradient."""
  del mean, var
  return _standardise(x, *_of_batch(x))


def _forward(x, mean, var):
  now_mean, now_var = _of_batch(x)
  out = _standardise(x, now_mean, now_var)
  return out, (x, mean - now_mean, var - now_var)


def _backward(residuals, cotangent):
  x, mean_gap, var_gap = residuals
  _, back = jax.vjp(lambda x: _standardise(x, *_of_batch(x)), x)
  return (*back(cotangent), mean_gap, var_gap)


_by_batch.defvjp(_forward, _backward)


def _of_batch(x: Array) -> tuple[Array, Array]:
  return statistics(x, jnp.ones(x.shape[0]))
