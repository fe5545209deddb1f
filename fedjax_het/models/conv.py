"""One convolution for everywhere: flat, in a scan over clients, under vmap.

`conv2d` is a JAX primitive, so that the formulation is chosen at lowering, by
platform, and so that vmap over clients with filters of their own is seen as
such.  All of JAX's transformations hold, forward and reverse mode to any order.

Why: inside a loop XLA CPU computes the gradient of its own convolution up to
50x below its speed outside, and filters vmapped over clients become a grouped
convolution, slow everywhere on CPU.  `experiments/results/bench_conv` has the
table from which `choose` was written; on a GPU it is unmeasured.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array
from fedjax_het.models import winograd
from fedjax_het.models.formulations import (
  CANONICAL,
  IM2COL,
  LAX,
  Geometry,
)

FORMULATIONS = {
  "canonical": CANONICAL,
  "im2col": IM2COL,
  "lax": LAX,
  "winograd": winograd.WINOGRAD,
}
_STATIC = ("face", "geometry", "formulation", "clients")


def conv2d(
  x: Array,
  w: Array,
  *,
  padding: str | Sequence[tuple[int, int]] = "SAME",
  strides: tuple[int, int] = (1, 1),
  formulation: str | None = None,
) -> Array:
  """Two-dimensional convolution (cross-correlation), channels last.

  y[b, p, q, o] = sum_{i, j, c} x[b, p s + i - l, q s + j - l, c] w[i, j, c, o]

  with strides s and low padding l of each axis.

  Args:
    x: [B, H, W, I], images.
    w: [h, w, I, O], the filter, of the same dtype.
    padding: "SAME", "VALID", or ((low, high), (low, high)), each >= 0.
    strides: (vertical, horizontal).
    formulation: "lax" (XLA's own), "canonical" (the same sums, laid out so
      that XLA CPU stays fast in loops), "im2col" (patches and a matrix
      product), "winograd" (see `models.winograd`; stride 1, 3 to 5 taps);
      None picks the fastest that was measured, see `choose`.  Under vmap over
      clients with filters of their own, all but "lax" loop over the clients on
      a CPU.

  Returns:
    [B, H', W', O].

  Raises:
    UserError: shapes, padding or formulation do not fit.
  """
  geometry = _geometry(x, w, padding, strides)
  if formulation is not None and formulation not in FORMULATIONS:
    raise unknown("formulation", formulation, FORMULATIONS)
  if formulation == "winograd" and not _winograd_fits(geometry):
    raise UserError(
      f"formulation 'winograd' takes stride 1 and 3 to 5 taps, got "
      f"strides {geometry.strides} and a filter of {geometry.filter}: use "
      "formulation=None"
    )
  return conv_p.bind(
    x,
    w,
    face="output",
    geometry=geometry,
    formulation=formulation,
    clients=False,
  )


def choose(
  face: str,
  geometry: Geometry,
  channels: tuple[int, int],
  dtype: jnp.dtype,
  *,
  cpu: bool,
  clients: bool,
) -> str:
  """The formulation for `formulation=None`.

  Args:
    face: "output", "image" or "filter", see `models.formulations`.
    geometry: of the convolution.
    channels: (I, O).
    dtype: of the operands.
    cpu: whether it is lowered for a CPU.
    clients: whether each client has a filter of its own (under vmap).

  Returns:
    A name in `FORMULATIONS`.
  """
  if not cpu:  # unmeasured; batched products rather than grouped convolutions
    return "im2col" if clients else "lax"
  if _winograd_fits(geometry) and dtype == jnp.float32 and min(channels) >= 32:
    tiles = [-(-out // winograd.TILE) for out in geometry.output]
    points = [taps + winograd.TILE - 1 for taps in geometry.filter]
    products = math.prod(tiles) * math.prod(points)
    if products <= math.prod(geometry.output) * math.prod(geometry.filter) / 2:
      return "winograd"
  if face == "filter" and geometry.strides != (1, 1):
    return "im2col"  # canonical multiplies by the zeros between the strides
  return "canonical"


def _winograd_fits(geometry: Geometry) -> bool:
  return geometry.strides == (1, 1) and all(
    taps in winograd.TAPS for taps in geometry.filter
  )


def _geometry(x, w, padding, strides) -> Geometry:
  if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[2]:
    raise UserError(
      f"conv2d takes x [B, H, W, I] and w [h, w, I, O], got {x.shape} and "
      f"{w.shape}"
    )
  if x.dtype != w.dtype:
    raise UserError(f"conv2d takes one dtype, got {x.dtype} and {w.dtype}")
  image, taps, strides = x.shape[1:3], w.shape[:2], tuple(strides)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(image, taps, strides, padding)
  geometry = Geometry(image, taps, strides, tuple(map(tuple, padding)))
  if min(min(pad) for pad in geometry.padding) < 0 or min(strides) < 1:
    raise UserError(f"padding {padding} or strides {strides} too small")
  if min(geometry.output) < 1:
    raise UserError(
      f"a filter of {taps} does not fit an image of {image} with padding "
      f"{geometry.padding}: give larger images or a smaller filter"
    )
  return geometry


conv_p = Primitive("client_conv")
conv_p.def_impl(jax.jit(conv_p.bind, static_argnames=_STATIC))


@conv_p.def_abstract_eval
def _abstract(a, b, *, face, geometry, formulation, clients):
  del formulation
  lead, a_shape, b_shape = (
    (a.shape[:1], a.shape[1:], b.shape[1:])
    if clients
    else ((), a.shape, b.shape)
  )
  shape = {
    "output": (a_shape[0], *geometry.output, b_shape[3]),
    "image": (a_shape[0], *geometry.image, b_shape[2]),
    "filter": (*geometry.filter, a_shape[3], b_shape[3]),
  }[face]
  return a.update(shape=(*lead, *shape), weak_type=False)


def _lowering(cpu: bool) -> Callable:
  def run(a, b, *, face, geometry, formulation, clients):
    if formulation is None:
      # I and O are the last axes of x and g, or of w
      filter_ = b.shape[-2:]
      channels = (a.shape[-1], filter_[1]) if face == "filter" else filter_
      formulation = choose(
        face, geometry, channels, a.dtype, cpu=cpu, clients=clients
      )

    def one(a, b):
      return getattr(FORMULATIONS[formulation], face)(a, b, geometry)

    if not clients:
      return one(a, b)
    if cpu and formulation != "lax":  # "lax" stays XLA's own, to compare with
      return lax.map(lambda pair: one(*pair), (a, b))
    return jax.vmap(one)(a, b)

  return mlir.lower_fun(run, multiple_results=False)


mlir.register_lowering(conv_p, _lowering(cpu=False))
mlir.register_lowering(conv_p, _lowering(cpu=True), platform="cpu")


# The faces of one trilinear form: the transpose of each in either operand is
# another of them.  A transpose is asked with the cotangent and both operands.
_LEFT = {  # (cotangent, right operand) -> the left operand's cotangent
  "output": lambda ct, w: (ct, w, "image"),
  "image": lambda ct, w: (ct, w, "output"),
  "filter": lambda ct, g: (g, ct, "image"),
}
_RIGHT = {  # (cotangent, left operand) -> the right operand's cotangent
  "output": lambda ct, x: (x, ct, "filter"),
  "image": lambda ct, g: (ct, g, "filter"),
  "filter": lambda ct, x: (x, ct, "output"),
}


def _transpose_left(ct, a, b, *, face, **static):
  del a
  left, right, face = _LEFT[face](ct, b)
  return conv_p.bind(left, right, face=face, **static)


def _transpose_right(ct, a, b, *, face, **static):
  del b
  left, right, face = _RIGHT[face](ct, a)
  return conv_p.bind(left, right, face=face, **static)


ad.defbilinear(conv_p, _transpose_left, _transpose_right)


def _batch(operands, dims, *, face, clients, **static):
  """vmap: a shared filter sees one large batch, others become clients."""
  a, b = operands
  if not clients and face != "filter" and dims[1] is None:
    a = jnp.moveaxis(a, dims[0], 0)
    merged = a.reshape(-1, *a.shape[2:])
    out = conv_p.bind(merged, b, face=face, clients=False, **static)
    return out.reshape(*a.shape[:2], *out.shape[1:]), 0
  size = next(
    operand.shape[dim]
    for operand, dim in zip(operands, dims, strict=True)
    if dim is not None
  )
  a, b = (
    jnp.broadcast_to(operand, (size, *operand.shape))
    if dim is None
    else jnp.moveaxis(operand, dim, 0)
    for operand, dim in zip(operands, dims, strict=True)
  )
  if not clients:
    return conv_p.bind(a, b, face=face, clients=True, **static), 0
  merged = (operand.reshape(-1, *operand.shape[2:]) for operand in (a, b))
  out = conv_p.bind(*merged, face=face, clients=True, **static)
  return out.reshape(size, -1, *out.shape[1:]), 0


batching.primitive_batchers[conv_p] = _batch
