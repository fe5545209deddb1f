"""Tasks on one set of images: the same examples, other inputs and targets.

A task turns a data set of images into inputs and targets, and brings a small
network, a loss, a score and the features by which its heterogeneity is seen.
Data are heterogeneous *for a task*: see `data.embedding`.

Example:
  >>> from fedjax_het.data import sources
  >>> task = TASKS["inpainting"]
  >>> made = task.make(sources.load("digits"), np.random.default_rng(0))
  >>> made.train_x.shape, made.train_y.shape
  ((1437, 8, 4, 1), (1437, 32))
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core import local
from fedjax_het.core.evaluate import Measure, classification
from fedjax_het.core.types import Array, Model, Params
from fedjax_het.data._dataset import Dataset
from fedjax_het.models.dense import mlp


class Task(NamedTuple):
  """What is asked about images, and how it is learnt and judged.

  make: (images, generator) -> the same examples in the same order with other
    inputs x f32[n, ...] and targets y, i32[n] or f32[n, D]; `num_classes` of
    the result is the number of outputs.
  network: (input shape, outputs) -> (model, features): features is
    (the model's params, x f32[B, ...]) -> f32[B, d], the inner layer.
  measure: (what the model gives, y) -> loss f32[B] and score [B].
  score: what the score is, in words.
  """

  make: Callable[[Dataset, np.random.Generator], Dataset]
  network: Callable[
    [tuple[int, ...], int], tuple[Model, Callable[[Params, Array], Array]]
  ]
  measure: Measure
  score: str


def mean_loss(model: Model, measure: Measure) -> local.Loss:
  """The mean of a measure's loss over the real examples of a batch.

  `local.cross_entropy` for any task: give `jax.value_and_grad` of it to
  `fed_avg(gradient=...)`.
  """

  def loss(params, batch, key):
    del key
    each, _ = measure(model.apply(params, batch.x), batch.y)
    return jnp.sum(each * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

  return loss


def squared_error(out: Array, target: Array) -> tuple[Array, Array]:
  """Mean squared error f32[B] of [B, D], and 1 minus it."""
  loss = jnp.mean(jnp.square(out - target), axis=-1)
  return loss, 1 - loss


def direction_error(out: Array, target: Array) -> tuple[Array, Array]:
  """Mean squared error f32[B] of (cos, sin) [B, 2], and the cosine between."""
  loss, _ = squared_error(out, target)
  length = jnp.linalg.norm(out, axis=-1)
  return loss, jnp.sum(out * target, axis=-1) / jnp.maximum(length, 1e-12)


def rotate(images: np.ndarray, angles: np.ndarray) -> np.ndarray:
  """Turns each image anticlockwise about its centre, bilinearly.

  Args:
    images: f32[n, H, W, C]; what comes in from outside has their least value.
    angles: f[n], radians.

  Returns:
    f32[n, H, W, C].
  """
  from scipy import ndimage

  outside = float(images.min())
  out = np.empty_like(images, np.float32)
  for k, (image, degrees) in enumerate(
    zip(images, np.degrees(angles), strict=True)
  ):
    for channel in range(images.shape[3]):
      out[k, :, :, channel] = ndimage.rotate(
        image[:, :, channel],
        degrees,
        reshape=False,
        order=1,
        mode="grid-constant",
        cval=outside,
      )
  return out


def _both(dataset, change, outputs=None):
  """The data set with (x, y) of each split changed."""
  train_x, train_y = change(dataset.train_x, dataset.train_y)
  test_x, test_y = change(dataset.test_x, dataset.test_y)
  return dataset._replace(
    train_x=train_x,
    train_y=train_y,
    test_x=test_x,
    test_y=test_y,
    num_classes=outputs or train_y.shape[1],
  )


def _inpainting(dataset, rng):
  del rng

  def halves(x, _):
    middle = x.shape[2] // 2
    return x[:, :, :middle], x[:, :, middle:].reshape(len(x), -1)

  return _both(dataset, halves)


def _rotation(dataset, rng):
  def turn(x, _):
    angle = rng.uniform(-np.pi, np.pi, len(x))
    target = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return rotate(x, angle), target.astype(np.float32)

  return _both(dataset, turn)


def _denoising(dataset, rng):
  def disturb(x, _):
    noise = rng.standard_normal(x.shape, np.float32)
    return x + noise, x.reshape(len(x), -1)

  return _both(dataset, disturb)


def _mlp(hidden, inner):
  """A network whose features are the activations of hidden layer `inner`."""

  def network(input_shape, outputs):
    # the first layers of the same network, by the same names
    encoder = mlp(input_shape, hidden[inner], hidden[:inner])

    def features(params, x):
      own = {f"Dense_{i}": params[f"Dense_{i}"] for i in range(inner + 1)}
      return jax.nn.relu(encoder.apply(own, x))

    return mlp(input_shape, outputs, hidden), features

  return network


#: Name -> task.  Pixels are normalised, so that 1 is the squared error of
#: guessing the mean pixel.
TASKS: dict[str, Task] = {
  "classification": Task(
    lambda dataset, rng: dataset, _mlp((64, 32), 1), classification, "accuracy"
  ),
  # left half -> right half, through a bottleneck
  "inpainting": Task(
    _inpainting,
    _mlp((64, 16, 64), 1),
    squared_error,
    "1 - squared error of a pixel",
  ),
  # a turned image -> (cos, sin) of its angle
  "rotation": Task(
    _rotation, _mlp((64, 32), 1), direction_error, "cosine of the error"
  ),
  # an image with noise as strong as its pixels -> the image
  "denoising": Task(
    _denoising,
    _mlp((64, 16, 64), 1),
    squared_error,
    "1 - squared error of a pixel",
  ),
}
