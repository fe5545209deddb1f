"""Public functions: dense sums of (index, value) uploads."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het_kernels.bridge import Op
from fedjax_het_kernels.sparse_sum import launch, xla

FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32)

# Arrays named by the static `fields`: index i32[N, k], value [N, k], weight
# f32[N] or absent; size is P.
SUM = Op("sparse_sum", xla.total, launch.total)
# The same and scale f32[1] -> digits i32[3, P], bad i32[1].
FIXED = Op("sparse_sum_fixed", xla.fixed, launch.fixed)


class FixedSums(NamedTuple):
  """Sums over some of the clients in fixed point; those of others add to them.

  digits: i32[3, P], sum = (digits . [2^22, 2^11, 1]) / scale.
  bad: i32[1], how many entries were NaN, infinite or beyond 2^52 / scale.
  """

  digits: jax.Array
  bad: jax.Array


def sparse_sum(
  index: jax.Array,
  value: jax.Array,
  weight: jax.Array | None = None,
  *,
  size: int,
  deterministic: bool = False,
  scale: jax.Array | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """Adds up sparse uploads such as top-k updates.

    sum_p = sum_{n, i: index_ni = p} weight_n value_ni

  Indices that repeat add up; those out of range are padding.  What a client of
  weight 0 sends is ignored, NaN, too.

  On a CPU entries are added in their order, on a GPU by atomics in any: float32
  rounding then differs from run to run.  With `deterministic` every term is
  rounded to a multiple of 1 / scale and these are added as integers, so that
  the same terms give the same bits in any order, by any implementation, on any
  device.  It costs about eight times as much on a CPU.  The error is at most

    |sum_p| 2^-23 + (entries at p) / (2 scale)

  and 1 / scale is below 2^-50 x all entries x the largest |weight x value|: for
  10^7 entries 2^-27 of the largest term.  Terms below 2^-126 are taken as 0.
  NaN or Inf anywhere makes everything NaN.

  Args:
    index: i32[N, k]; < 0 or >= size is padding.
    value: f[N, k], float16, bfloat16 or float32.
    weight: f32[N]; None is 1 each.
    size: P; static.
    deterministic: static.
    scale: power of 2, f32[], made by `fixed_scale`; None makes it from these
      entries.  For `deterministic` only.
    implementation: None, "xla", "triton" or "interpret": `dispatch.resolve`.

  Returns:
    f32[P].  Differentiable in value and weight (by plain JAX), with
    `deterministic` as if nothing were rounded.

  Raises:
    ValueError: wrong shapes, dtypes or names; a scale without `deterministic`.
    NotImplementedError: "triton" on another platform than CUDA.

  References:
    Demmel and Nguyen, Fast reproducible floating-point summation, ARITH 2013.
  """
  given = _check("sparse_sum", index, value, weight, size)
  if not deterministic:
    if scale is not None:
      raise ValueError("sparse_sum: scale needs deterministic=True")
    (total,) = _run(SUM, given, implementation, size=size)
    return total
  index, value, weight = given["index"], given["value"], given.get("weight")
  if scale is None:
    share = None if weight is None else weight[:, None]
    _, terms = xla.terms(index, value, share, size)
    sizes = jnp.where(jnp.isfinite(terms), jnp.abs(terms), jnp.float32(0))
    scale = fixed_scale(sizes.max(initial=0), index.size)
  scale = jax.lax.stop_gradient(_scale("sparse_sum", scale))
  return _fixed(index, value, weight, scale, size, implementation)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _fixed(index, value, weight, scale, size, implementation):
  sums = sparse_sum_fixed(
    index,
    value,
    weight,
    size=size,
    scale=scale,
    implementation=implementation,
  )
  return finish_fixed(sums, scale)


@_fixed.defjvp
def _fixed_jvp(size, implementation, primals, tangents):
  tangent = xla.sums_tangent(primals[:3], tangents[:3], size)
  return _fixed(*primals, size, implementation), tangent


def sparse_sum_fixed(
  index: jax.Array,
  value: jax.Array,
  weight: jax.Array | None = None,
  *,
  size: int,
  scale: jax.Array,
  implementation: str | None = None,
) -> FixedSums:
  """A deterministic sum's part, for clients that come in chunks or on devices.

  Add up the results (`jax.tree.map(jnp.add, a, b)`, `lax.psum`; up to 2^20 of
  them), then `finish_fixed`: the same bits as `sparse_sum` of all entries at
  once with this scale.

  Args:
    index, value, weight, size, implementation: as in `sparse_sum`.
    scale: f32[], the same everywhere, made by `fixed_scale`.

  Returns:
    A `FixedSums`.

  Raises:
    ValueError, NotImplementedError: as `sparse_sum`.
  """
  given = _check("sparse_sum_fixed", index, value, weight, size)
  given["scale"] = _scale("sparse_sum_fixed", scale)[None]
  return FixedSums(*_run(FIXED, given, implementation, size=size))


def finish_fixed(sums: FixedSums, scale: jax.Array) -> jax.Array:
  """Turns fixed-point sums into f32[P]; all NaN if `sums.bad` is not 0.

  Args:
    sums: of all clients.
    scale: f32[], that of the sums.
  """
  return xla.finish(*sums, _scale("finish_fixed", scale))


def fixed_scale(largest: jax.Array, entries: int) -> jax.Array:
  """The scale of a deterministic sum: nothing overflows, however terms fall.

  Args:
    largest: f32[], at least every |weight x value|; under shard_map its
      `lax.pmax`.
    entries: how many terms there are in all, over all chunks and devices (or
      more); static.

  Returns:
    f32[], the largest power of 2 (up to 2^126) for which all terms add up to at
    most 2^52 / scale.
  """
  largest = jnp.asarray(largest)
  if largest.shape or largest.dtype != jnp.float32:
    raise ValueError(
      f"fixed_scale: largest must be a float32 scalar, not {largest.dtype}"
      f"{list(largest.shape)}"
    )
  return xla.scale_for(largest, entries)


def _run(op, given, implementation, **static):
  return op(
    *given.values(),
    implementation=implementation,
    fields=tuple(given),
    **static,
  )


def _scale(name, scale) -> jax.Array:
  scale = jnp.asarray(scale)
  if scale.shape or scale.dtype != jnp.float32:
    raise ValueError(
      f"{name}: scale must be a float32 scalar, made by fixed_scale, not"
      f" {scale.dtype}{list(scale.shape)}"
    )
  return scale


def _check(name, index, value, weight, size) -> dict[str, jax.Array]:
  index, value = jnp.asarray(index), jnp.asarray(value)
  if index.ndim != 2 or index.dtype != jnp.int32:
    raise ValueError(
      f"{name}: index must be int32[N, k], not {index.dtype}{list(index.shape)}"
    )
  if value.shape != index.shape or value.dtype not in FLOATS:
    raise ValueError(
      f"{name}: value must be float16, bfloat16 or float32"
      f"{list(index.shape)}, not {value.dtype}{list(value.shape)}"
    )
  if not 0 <= size < 2**31 or index.size >= 2**31:
    raise ValueError(
      f"{name}: size {size} and {index.size} entries must be below 2^31"
    )
  given = {"index": index, "value": value}
  if weight is not None:
    given["weight"] = jnp.asarray(weight)
    if (given["weight"].dtype, given["weight"].shape) != (
      jnp.float32,
      index.shape[:1],
    ):
      raise ValueError(
        f"{name}: weight must be float32[{index.shape[0]}], not"
        f" {given['weight'].dtype}{list(given['weight'].shape)}"
      )
  return given
