"""Winograd's minimal filtering: fewer multiplications, all in matrix products.

Along one axis, m = 4 outputs of an r-tap filter need n = m + r - 1 products
instead of m r (Toom-Cook interpolation at n points):

  y = A^T [(G w) * (B^T x)],    * elementwise,

and a two-dimensional convolution applies this along both axes.  Summed over
the input channels, the elementwise products become n n matrix products

  M[t] = V[t] U[t],   V = B^T x B  [tiles, I],   U = G w G^T  [I, O],

one per point t of a tile.  The gradients are the exact adjoints of these
lines, dU = V^T dM and dV = dM U^T.  A 5 x 5 filter needs 64 products per 4 x 4
outputs instead of 400; nothing here is a convolution, so the speed in a loop
is that of matrix products.

Accuracy: in float32 the error is about 1e-6 of the typical output for 3 taps
and 3e-6 for 5 (root mean square; direct summation: 2e-7).  It is relative to
the largest value of a tile: outputs that cancel to zero come out as rounding,
and one infinity spoils its tile.

References:
  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015,
  arXiv:1509.09308.  Barabasz et al., Error Analysis and Improving the Accuracy
  of Winograd Convolution for Deep Neural Networks, 2018, arXiv:1803.10986 (the
  choice of points).
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_het.core.types import Array
from fedjax_het.models.formulations import Formulation, Geometry

TILE = 4  # m; larger tiles lose accuracy faster than they save products
TAPS = range(3, 6)  # r: filters that these points serve
_POINTS = [Fraction(p) for p in ("0", "1", "-1", "1/2", "-2", "2", "-1/2")]


class _Axis(NamedTuple):
  """The transforms along one axis, and where the tiles lie.

  output: A^T [m, n].  filter: G [n, r].  input: B^T [n, n].
  tiles: how many cover the axis.  size: of the image;  out: of the output.
  low: zeros before the image.
  """

  output: np.ndarray
  filter: np.ndarray
  input: np.ndarray
  tiles: int
  size: int
  out: int
  low: int


def _coefficients(roots: Sequence[Fraction]) -> list[Fraction]:
  """Of prod (z - root), from z^0 up."""
  poly = [Fraction(1)]
  for root in roots:
    shifted = [Fraction(0), *poly]
    poly = [a - root * b for a, b in zip(shifted, [*poly, 0], strict=True)]
  return poly


@functools.cache
def transforms(taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(A^T [m, n], G [n, r], B^T [n, n]) for r taps, exact before rounding.

  The last point is infinity.  Rows of G and B^T are balanced by powers of two,
  which cancel and cost no accuracy.
  """
  m, n = TILE, TILE + taps - 1
  points = _POINTS[: n - 1]
  powers = [[a**k for k in range(max(m, taps))] for a in points]
  output = [[p[i] for p in powers] + [Fraction(i == m - 1)] for i in range(m)]
  filter_, input_ = [], []
  for j, a in enumerate(points):
    others = points[:j] + points[j + 1 :]
    scale = math.prod(a - b for b in others)
    filter_.append([p / scale for p in powers[j][:taps]])
    input_.append([*_coefficients(others), Fraction(0)])
  filter_.append([Fraction(k == taps - 1) for k in range(taps)])
  input_.append(_coefficients(points))
  a, g, b = (np.array(x, np.float64) for x in (output, filter_, input_))
  ratio = np.abs(b).sum(1) / np.abs(g).sum(1)
  balance = np.exp2(np.round(np.log2(ratio) / 2))[:, None]
  return a, g * balance, b / balance


def _axes(geometry: Geometry) -> list[_Axis]:
  return [
    _Axis(*transforms(taps), -(-out // TILE), size, out, low)
    for size, taps, _, (low, _), out in zip(
      *geometry, geometry.output, strict=True
    )
  ]


def _combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
  """matrix @ parts, as sums of arrays."""
  result = []
  for row in matrix:
    terms = [
      part * jnp.asarray(c, part.dtype)
      for c, part in zip(row, parts, strict=True)
      if c
    ]
    result.append(functools.reduce(jnp.add, terms))
  return result


def _split(x: Array, axis: int) -> list[Array]:
  return [lax.index_in_dim(x, i, axis, False) for i in range(x.shape[axis])]


def _filter_transform(w: Array, down: _Axis, across: _Axis) -> Array:
  """U [n n, I, O] of w [h, w, I, O]."""
  u = jnp.stack(_combine(down.filter, _split(w, 0)))
  u = jnp.stack(_combine(across.filter, _split(u, 1)), 1)
  return u.reshape(-1, *w.shape[2:])


def _input_transform(x: Array, down: _Axis, across: _Axis) -> Array:
  """V [n n, tiles, I] of x [B, H, W, I]; neighbouring tiles overlap."""

  def windows(x, axis, at):
    stop = TILE * (at.tiles - 1) + 1
    return [
      lax.slice_in_dim(x, i, i + stop, TILE, axis) for i in range(len(at.input))
    ]

  pads = [
    (at.low, at.tiles * TILE + len(at.input) - TILE - at.size - at.low)
    for at in (down, across)
  ]
  config = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]
  x = lax.pad(x, jnp.zeros((), x.dtype), config)
  v = jnp.stack(_combine(down.input, windows(x, 1, down)))
  # one pass per axis: fused, the first would be computed n times over
  v = lax.optimization_barrier(v)
  v = jnp.stack(_combine(across.input, windows(v, 3, across)), 1)
  return v.reshape(len(down.input) * len(across.input), -1, x.shape[3])


def _input_adjoint(v: Array, down: _Axis, across: _Axis) -> Array:
  """dx [B, H, W, I] of dV [n n, tiles, I]: overlapping tiles add up."""

  def overlap(parts, axis, at):
    """n parts [.., tiles, ..] to one array with the image's axis."""
    reach = -(-len(parts) // TILE)  # tiles that share an element
    rows = []
    for i in range(TILE):
      shifted = []
      for k, part in enumerate(parts[i::TILE]):
        config = [(0, 0, 0)] * part.ndim
        config[axis] = (k, reach - 1 - k, 0)
        shifted.append(lax.pad(part, jnp.zeros((), part.dtype), config))
      rows.append(functools.reduce(jnp.add, shifted))
    x = jnp.stack(rows, axis + 1)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, at.low, at.low + at.size, 1, axis)

  v = _untile(v, down, across)
  x = overlap(_combine(across.input.T, _split(v, 1)), 3, across)
  x = lax.optimization_barrier(x)
  return overlap(_combine(down.input.T, _split(x, 0)), 1, down)


def _untile(m: Array, down: _Axis, across: _Axis) -> Array:
  """[n n, tiles, C] as [n, n, B, tiles down, tiles across, C]."""
  points = len(down.input), len(across.input)
  return m.reshape(*points, -1, down.tiles, across.tiles, m.shape[2])


def _output_transform(m: Array, down: _Axis, across: _Axis) -> Array:
  """y [B, H', W', O] of M [n n, tiles, O]."""
  m = _untile(m, down, across)
  y = jnp.stack(_combine(down.output, _split(m, 0)), 2)
  y = lax.optimization_barrier(y)  # [n, B, m, tiles, tiles, O]
  y = jnp.stack(_combine(across.output, _split(y, 0)), 4).swapaxes(1, 2)
  y = y.reshape(y.shape[0], down.tiles * TILE, across.tiles * TILE, -1)
  return y[:, : down.out, : across.out]


def _output_adjoint(g: Array, down: _Axis, across: _Axis) -> Array:
  """dM [n n, tiles, O] of g [B, H', W', O]."""
  pads = [(0, at.tiles * TILE - at.out) for at in (down, across)]
  g = jnp.pad(g, ((0, 0), *pads, (0, 0)))
  batch, _, _, out = g.shape
  g = g.reshape(batch, down.tiles, TILE, across.tiles * TILE, out)
  m = jnp.stack(_combine(down.output.T, _split(g, 2)))
  m = lax.optimization_barrier(m)
  m = m.reshape(-1, batch, down.tiles, across.tiles, TILE, out)
  m = jnp.stack(_combine(across.output.T, _split(m, 4)), 1)
  return m.reshape(len(down.input) * len(across.input), -1, out)


def _products(a: Array, b: Array, contract: tuple[int, int]) -> Array:
  """One matrix product per point; in full precision, tiles amplify errors."""
  dims = ((contract[0],), (contract[1],)), ((0,), (0,))
  return lax.dot_general(a, b, dims, precision=lax.Precision.HIGHEST)


def _output(x: Array, w: Array, geometry: Geometry) -> Array:
  axes = _axes(geometry)
  u, v = _filter_transform(w, *axes), _input_transform(x, *axes)
  return _output_transform(_products(v, u, (2, 1)), *axes)


def _image(g: Array, w: Array, geometry: Geometry) -> Array:
  axes = _axes(geometry)
  u, m = _filter_transform(w, *axes), _output_adjoint(g, *axes)
  return _input_adjoint(_products(m, u, (2, 2)), *axes)


def _filter(x: Array, g: Array, geometry: Geometry) -> Array:
  down, across = _axes(geometry)
  v, m = _input_transform(x, down, across), _output_adjoint(g, down, across)
  u = _products(v, m, (1, 1))
  u = u.reshape(len(down.input), len(across.input), *u.shape[1:])
  w = jnp.stack(_combine(down.filter.T, _split(u, 0)))
  return jnp.stack(_combine(across.filter.T, _split(w, 1)), 1)


WINOGRAD = Formulation(_output, _image, _filter)
