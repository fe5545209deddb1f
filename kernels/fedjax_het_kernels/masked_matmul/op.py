"""Public functions: products with masked weights, and the masks' step."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from fedjax_het_kernels.bridge import Op
from fedjax_het_kernels.layout import BITS
from fedjax_het_kernels.masked_matmul import launch, xla

DTYPES = (jnp.float32, jnp.float16, jnp.bfloat16)
VALUES = ((-1, 1), (0, 1))

# (x [N, B, R] or [B, R], weights [K, M], bits u32[N, ceil(K/32), M]), static
# transposed, signed, precision -> [N, B, I].  R is K and I is M, or the other
# way round if transposed.
MATMUL = Op("masked_matmul", xla.matmul, launch.matmul)
# (x [N, B, K] or [B, K], grad [N, B, M], weights [K, M], scores [N, K, M],
# rate f32[1]), static precision -> new scores and their bits.
STE_UPDATE = Op("ste_update", xla.ste_update, launch.ste_update)


class _Options(NamedTuple):
  signed: bool
  precision: str
  implementation: str | None


def masked_matmul(
  x: jax.Array,
  weights: jax.Array,
  bits: jax.Array,
  scores: jax.Array | None = None,
  *,
  values: tuple[int, int] = (-1, 1),
  precision: str | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """Multiplies each client's batch with its own mask of shared weights.

    y_nbm = sum_k x_nbk w_km values[bit_nkm]

  from one bit a weight and client: dense masks or weights [N, K, M] never
  exist.  Sums are in float32, whatever the inputs are.

  Gradients: of x and of the weights they are exact; the scores, of which the
  bits are the signs, get the straight-through one, d bit / d score := 1:

    dL/dscore_nkm = w_km sum_b x_nbk dL/dy_nbm

  That one is [N, K, M] numbers; `ste_update` makes the step without them.
  Under CUDA the kernel computes y and the gradient of x, XLA the other two.

  Args:
    x: [N, B, K], or [B, K] for one batch that all clients share; float32,
      float16 or bfloat16.
    weights: [K, M], same dtype.
    bits: uint32[N, ceil(K / 32), M], made by `pack_rows`; padding is ignored.
    scores: [N, K, M] floats, for their gradient only: their values are not
      read.
    values: what bits 0 and 1 stand for: (-1, 1), signs, or (0, 1), a mask.
    precision: "default", "high" or "highest", as `jax.lax.Precision`; only
      float32 on accelerators differs.  None takes
      `jax.default_matmul_precision`.
    implementation: None, "xla", "triton" or "interpret": `dispatch.resolve`.

  Returns:
    [N, B, M], dtype of x.

  Raises:
    ValueError: wrong shapes, dtypes or names.
    NotImplementedError: "triton" on another platform than CUDA.

  References:
    Sign and {0, 1} supermasks: Zhou et al., Deconstructing Lottery Tickets,
    2019, arXiv:1905.01067.
  """
  name = "masked_matmul"
  x, weights, bits = map(jnp.asarray, (x, weights, bits))
  _check_layer(name, x, weights)
  rows, columns = weights.shape
  if bits.dtype != jnp.uint32:
    raise ValueError(f"{name}: bits must be uint32, not {bits.dtype}")
  if bits.ndim != 3 or bits.shape[1:] != (-(-rows // BITS), columns):
    raise ValueError(
      f"{name}: bits {bits.shape} do not mask weights {weights.shape}; give"
      f" [N, {-(-rows // BITS)}, {columns}] words, as pack_rows makes them"
    )
  _check_clients(name, x, len(bits))
  if scores is not None:
    scores = jnp.asarray(scores)
    _check_scores(name, scores, len(bits), weights)
  if tuple(values) not in VALUES:
    raise ValueError(f"{name}: values must be (-1, 1) or (0, 1), not {values}")
  options = _Options(
    tuple(values) == (-1, 1), _precision(name, precision), implementation
  )
  return _product(x, weights, bits, scores, options)


def ste_update(
  x: jax.Array,
  grad: jax.Array,
  weights: jax.Array,
  scores: jax.Array,
  *,
  learning_rate: float | jax.Array,
  precision: str | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """A step of the scores straight through their signs, and the new bits.

    s_nkm <- s_nkm - lr w_km sum_b x_nbk g_nbm,    bit_nkm = (s_nkm >= 0)

  in one pass over the scores: the gradient [N, K, M] never exists.  Sums are
  in float32; the bits are the signs of the scores as they are stored, and NaN
  gives bit 0.

  Args:
    x: [N, B, K], or [B, K] for one batch that all clients share: what went
      into `masked_matmul`.
    grad: [N, B, M], dL/dy; dtype of x.
    weights: [K, M], dtype of x.
    scores: [N, K, M]; float32, float16 or bfloat16.
    learning_rate: scalar.
    precision, implementation: as in `masked_matmul`.

  Returns:
    The new scores, and uint32[N, ceil(K / 32), M] as `pack_rows` gives them.

  Raises:
    ValueError, NotImplementedError: as `masked_matmul`.
  """
  name = "ste_update"
  x, grad, weights, scores = map(jnp.asarray, (x, grad, weights, scores))
  _check_layer(name, x, weights)
  _check_scores(name, scores, len(scores) if scores.ndim else 0, weights)
  _check_clients(name, x, len(scores))
  shape = (len(scores), x.shape[-2], weights.shape[1])
  if grad.shape != shape or grad.dtype != x.dtype:
    raise ValueError(
      f"{name}: grad must be {x.dtype}{list(shape)}, like the product, not"
      f" {grad.dtype}{list(grad.shape)}"
    )
  return STE_UPDATE(
    x,
    grad,
    weights,
    scores,
    jnp.asarray(learning_rate, jnp.float32).reshape(1),
    implementation=implementation,
    precision=_precision(name, precision),
  )


def pack_rows(values: jax.Array) -> jax.Array:
  """Packs 32 rows of a weight matrix's mask into one row of words.

  Bit j of word [r, m] is row 32 r + j of column m: 1 iff the value is True, or
  a number >= 0, so sgn(0) = sgn(-0) = +1.  Padding bits are 0.  NaN raises
  where values are concrete and packs as 0 where they are not (`pack_signs`).

  Args:
    values: bool or real [..., K, M]; batch axes lead.

  Returns:
    uint32[..., ceil(K / 32), M]; not differentiable.

  Raises:
    ValueError: fewer than two axes, complex, or concrete NaN.
  """
  values = jnp.asarray(values)
  if values.ndim < 2:
    raise ValueError(f"pack_rows: give [..., K, M], not {values.shape}")
  if values.dtype == jnp.bool_:
    return xla.pack_rows(values)
  if jnp.issubdtype(values.dtype, jnp.complexfloating):
    raise ValueError(f"pack_rows: {values.dtype} values have no sign")
  if not isinstance(values, Tracer) and jnp.isnan(values).any():
    raise ValueError(
      "pack_rows: values contain NaN, which has no sign; drop that client"
    )
  return xla.pack_rows(values >= 0)


def unpack_rows(bits: jax.Array, rows: int) -> jax.Array:
  """Unpacks what `pack_rows` packed.

  Args:
    bits: uint32[..., ceil(K / 32), M].
    rows: K; static.

  Returns:
    bool[..., K, M].

  Raises:
    ValueError: bits do not hold so many rows.
  """
  bits = jnp.asarray(bits)
  words = -(-rows // BITS)
  if bits.dtype != jnp.uint32 or bits.ndim < 2 or bits.shape[-2] != words:
    raise ValueError(
      f"unpack_rows: {rows} rows need uint32[..., {words}, M], not"
      f" {bits.dtype}{list(bits.shape)}"
    )
  return xla.unpack_rows(bits, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _product(x, weights, bits, scores, options):
  del scores
  (product,) = MATMUL(
    x,
    weights,
    bits,
    implementation=options.implementation,
    transposed=False,
    signed=options.signed,
    precision=options.precision,
  )
  return product


def _forward(x, weights, bits, scores, options):
  return _product(x, weights, bits, scores, options), (x, weights, bits, scores)


def _backward(options, residuals, grad):
  """Under jit, gradients that nobody asks for are not computed."""
  x, weights, bits, scores = residuals
  (x_grad,) = MATMUL(
    grad,
    weights,
    bits,
    implementation=options.implementation,
    transposed=True,
    signed=options.signed,
    precision=options.precision,
  )
  if x.ndim == 2:
    x_grad = x_grad.astype(jnp.float32).sum(axis=0).astype(x.dtype)
  weight_grad = xla.weight_gradient(
    x, grad, weights, bits, options.signed, options.precision
  )
  score_grad = None
  if scores is not None:
    score_grad = xla.score_gradient(
      x, grad, weights, scores.dtype, options.precision
    )
    score_grad = _reduced(score_grad, scores)
  return _reduced(x_grad, x), _reduced(weight_grad, weights), None, score_grad


def _reduced(grad, primal) -> jax.Array:
  """Sums over the devices of shard_map that hold the same primal."""
  axes = _varying_axes(grad) - _varying_axes(primal)
  return lax.psum(grad, tuple(sorted(axes))) if axes else grad


def _varying_axes(array) -> frozenset[str]:
  """The mesh axes of shard_map over which an array varies."""
  kind = getattr(jax.typeof(array), "mat", None)
  return frozenset() if kind is None else kind.varying


_product.defvjp(_forward, _backward)


def _check_layer(name, x, weights) -> None:
  if x.dtype not in DTYPES or weights.dtype != x.dtype:
    raise ValueError(
      f"{name}: x and weights must both be float32, float16 or bfloat16, not"
      f" {x.dtype} and {weights.dtype}"
    )
  if weights.ndim != 2:
    raise ValueError(f"{name}: weights must be [K, M], not {weights.shape}")
  if x.ndim not in (2, 3) or x.shape[-1] != weights.shape[0]:
    raise ValueError(
      f"{name}: weights {weights.shape} need x [N, B, {weights.shape[0]}] or"
      f" [B, {weights.shape[0]}], not {x.shape}"
    )


def _check_clients(name, x, clients) -> None:
  if x.ndim == 3 and x.shape[0] != clients:
    raise ValueError(
      f"{name}: {clients} clients' masks, but x {x.shape} has"
      f" {x.shape[0]} clients"
    )


def _check_scores(name, scores, clients, weights) -> None:
  shape = (clients, *weights.shape)
  if scores.shape != shape or scores.dtype not in DTYPES:
    raise ValueError(
      f"{name}: scores must be floats {['N', *shape[1:]]}, one for each weight"
      f" of each client, not {scores.dtype}{list(scores.shape)}"
    )


def _precision(name, given) -> str:
  if given is None:
    given = jax.config.jax_default_matmul_precision or "default"
  try:
    return lax.Precision(given).name.lower()
  except ValueError:
    raise ValueError(
      f"{name}: unknown precision {given!r}; allowed are None,"
      f" {', '.join(map(repr, launch.DOT))}"
    ) from None
