"""Three ways to compute a convolution and its two gradients.

A convolution is a trilinear form in the image x, the filter w and the output
cotangent g, and each of its three *faces* is the gradient of another:

  output: y[p] = sum_k x[p s + k - l] w[k]
  image:  dL/dx, from g and w
  filter: dL/dw, from x and g

with p a position of the output, k a tap, s the stride and l the padding.  A
`Formulation` computes all three; `models.conv` chooses one.  Arrays are x
[B, H, W, I], w [h, w, I, O], g [B, H', W', O].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het.core.types import Array

_NHWC = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
  """What is static in a convolution; each field is (vertical, horizontal).

  image: (H, W).  filter: (h, w).  strides: >= 1.
  padding: ((low, high), (low, high)), zeros around the image, >= 0.
  """

  image: tuple[int, int]
  filter: tuple[int, int]
  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]

  @property
  def output(self) -> tuple[int, int]:
    """(H', W')."""
    return tuple(
      (size + sum(pad) - taps) // stride + 1
      for size, taps, stride, pad in zip(*self, strict=True)
    )


class Formulation(NamedTuple):
  """The three faces of one client's convolution.

  output: (x, w, geometry) -> y;  image: (g, w, geometry) -> dx;
  filter: (x, g, geometry) -> dw.
  """

  output: Callable[[Array, Array, Geometry], Array]
  image: Callable[[Array, Array, Geometry], Array]
  filter: Callable[[Array, Array, Geometry], Array]


def _lax_output(x: Array, w: Array, geometry: Geometry) -> Array:
  return lax.conv_general_dilated(
    x, w, geometry.strides, geometry.padding, dimension_numbers=_NHWC
  )


def _lax_image(g: Array, w: Array, geometry: Geometry) -> Array:
  shape = (g.shape[0], *geometry.image, w.shape[2])
  x = jax.ShapeDtypeStruct(shape, g.dtype)
  return jax.linear_transpose(lambda x: _lax_output(x, w, geometry), x)(g)[0]


def _lax_filter(x: Array, g: Array, geometry: Geometry) -> Array:
  shape = (*geometry.filter, x.shape[3], g.shape[3])
  w = jax.ShapeDtypeStruct(shape, x.dtype)
  return jax.linear_transpose(lambda w: _lax_output(x, w, geometry), w)(g)[0]


LAX = Formulation(_lax_output, _lax_image, _lax_filter)


def _dilate(g: Array, geometry: Geometry, axis: int) -> Array:
  """Puts stride - 1 zeros between the positions at `axis`, `axis` + 1."""
  if geometry.strides == (1, 1):
    return g
  config = [(0, 0, 0)] * g.ndim
  for i, stride in enumerate(geometry.strides):
    config[axis + i] = (0, 0, stride - 1)
  # without the barrier XLA folds the zeros back into a dilated convolution
  return lax.optimization_barrier(lax.pad(g, jnp.zeros((), g.dtype), config))


def _image_geometry(geometry: Geometry) -> Geometry:
  """The convolution of the dilated g with the turned filter that gives dx."""
  size, padding = [], []
  for image, taps, stride, (low, _), out in zip(
    *geometry, geometry.output, strict=True
  ):
    size.append((out - 1) * stride + 1)
    first = taps - 1 - low
    padding.append((first, image + taps - 1 - size[-1] - first))
  return Geometry(tuple(size), geometry.filter, (1, 1), tuple(padding))


def _turn(w: Array) -> Array:
  """The filter that correlates g back to the image: [h, w, O, I]."""
  return lax.optimization_barrier(w[::-1, ::-1].swapaxes(2, 3))


def _canonical_image(g: Array, w: Array, geometry: Geometry) -> Array:
  return _lax_output(
    _dilate(g, geometry, 1), _turn(w), _image_geometry(geometry)
  )


def _canonical_filter(x: Array, g: Array, geometry: Geometry) -> Array:
  # the batch takes the place of the input channels: [I, H, W, B] with
  # [H', W', B, O] gives [I, h, w, O]
  x = lax.optimization_barrier(x.transpose(3, 1, 2, 0))
  g = _dilate(lax.optimization_barrier(g.transpose(1, 2, 0, 3)), geometry, 0)
  padding = tuple(
    (low, taps - 1 + g.shape[i] - size - low)
    for i, (size, taps, _, (low, _)) in enumerate(zip(*geometry, strict=True))
  )
  swapped = Geometry(geometry.image, g.shape[:2], (1, 1), padding)
  dw = lax.optimization_barrier(_lax_output(x, g, swapped))
  return dw.transpose(1, 2, 0, 3)


# Inside a loop XLA CPU has a fast path only for NHWC x HWIO -> NHWC; its own
# gradients leave those layouts, the barriers keep these in them.
CANONICAL = Formulation(_lax_output, _canonical_image, _canonical_filter)


def _patches(x: Array, geometry: Geometry) -> Array:
  """What each output position sees: [B H' W', h w I]."""
  config = [(0, 0, 0), *((*pad, 0) for pad in geometry.padding), (0, 0, 0)]
  x = lax.pad(x, jnp.zeros((), x.dtype), config)
  (down, across), (high, wide) = geometry.strides, geometry.output
  parts = [
    x[:, i : i + down * (high - 1) + 1 : down][
      :, :, j : j + across * (wide - 1) + 1 : across
    ]
    for i in range(geometry.filter[0])
    for j in range(geometry.filter[1])
  ]
  seen = jnp.concatenate(parts, axis=3)
  return seen.reshape(-1, seen.shape[3])


def _im2col_output(x: Array, w: Array, geometry: Geometry) -> Array:
  y = _patches(x, geometry) @ w.reshape(-1, w.shape[3])
  return y.reshape(x.shape[0], *geometry.output, w.shape[3])


def _im2col_image(g: Array, w: Array, geometry: Geometry) -> Array:
  return _im2col_output(
    _dilate(g, geometry, 1), _turn(w), _image_geometry(geometry)
  )


def _im2col_filter(x: Array, g: Array, geometry: Geometry) -> Array:
  dw = _patches(x, geometry).T @ g.reshape(-1, g.shape[3])
  return dw.reshape(*geometry.filter, x.shape[3], g.shape[3])


IM2COL = Formulation(_im2col_output, _im2col_image, _im2col_filter)
