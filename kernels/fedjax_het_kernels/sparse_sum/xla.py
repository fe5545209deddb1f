"""Sparse sums in plain JAX.

On a CPU one scatter a client, so that its indices and products stay in cache;
on other platforms one scatter of everything, which is wide enough to be quick.

The order-independent sum is in fixed point.  An entry is rounded once to a
multiple q of 1 / scale, and q cut into digits

  q = high * 2^22 + middle * 2^11 + low     0 <= middle, low < 2^11

whose sums are exact in int32, in any order.  Every other float32 step is exact
or a single rounding, so all IEEE devices, and Triton's int64, get one result.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.overlap_mean.xla import finite_if_absent, varying_zeros

DIGIT = 11  # bits
BITS = 52  # |q| <= 2^BITS, of an entry and of all of them together
ENTRIES = 2**20  # added between two carries, which keeps digits below 2^31


def total(
  *arrays: jax.Array, fields: tuple[str, ...], size: int
) -> tuple[jax.Array]:
  """The op: see `op.SUM`."""
  given = dict(zip(fields, arrays, strict=True))
  entries = given["index"], given["value"], given.get("weight")
  return (sums(*entries, size),)


def fixed(
  *arrays: jax.Array, fields: tuple[str, ...], size: int
) -> tuple[jax.Array, jax.Array]:
  """The op: see `op.FIXED`."""
  given = dict(zip(fields, arrays, strict=True))
  index, value = given["index"], given["value"]
  weight, scale = given.get("weight"), given["scale"][0]
  zero = varying_zeros((size,), *arrays).astype(jnp.int32)
  state = (zero, zero, zero), zero.sum(dtype=jnp.int32)
  clients, length = index.shape
  if index.size and size:
    entries = min(index.size, ENTRIES)
    index, value = index.reshape(-1), value.reshape(-1)

    def group(g, state):
      begin = jnp.int32(g) * entries
      # The last group begins early, and leaves out what was there before.
      start = jnp.minimum(begin, index.size - entries)
      place = start + jnp.arange(entries, dtype=jnp.int32)
      where = lax.dynamic_slice_in_dim(index, start, entries)
      where = jnp.where(place >= begin, where, jnp.int32(-1))
      what = lax.dynamic_slice_in_dim(value, start, entries)
      share = None if weight is None else weight[place // length]
      return _add_fixed(state, *terms(where, what, share, size), scale)

    state = lax.fori_loop(0, -(-index.size // entries), group, state)
  digits, bad = state
  return jnp.stack(digits), bad[None]


def _add_fixed(state, index, term, scale):
  """Adds entries to the digits and carries; counts those out of range."""
  digits, bad = state
  # Subnormals differ between devices.
  small = jnp.abs(term) < jnp.finfo(jnp.float32).tiny
  q = jnp.round(jnp.where(small, jnp.float32(0), term) * scale)
  good = jnp.abs(q) <= 2.0**BITS  # NaN is not
  q = jnp.where(good, q, jnp.float32(0))
  high = jnp.floor(q * 2.0 ** (-2 * DIGIT))
  q = q - high * 2.0 ** (2 * DIGIT)
  middle = jnp.floor(q * 2.0**-DIGIT)
  low = q - middle * 2.0**DIGIT
  digits = (
    digit.at[index].add(part.astype(jnp.int32), mode="drop")
    for digit, part in zip(digits, (high, middle, low), strict=True)
  )
  return carry(*digits), bad + (~good).sum(dtype=jnp.int32)


def carry(high, middle, low):
  """The same number with middle and low in 0 ... 2^11 - 1."""
  middle = middle + (low >> DIGIT)
  high = high + (middle >> DIGIT)
  mask = 2**DIGIT - 1
  return high, middle & mask, low & mask


def finish(digits: jax.Array, bad: jax.Array, scale: jax.Array) -> jax.Array:
  """i32[3, P] to f32[P], within 2^-23; NaN if anything was out of range."""
  high, middle, low = carry(*digits)
  rest = ((middle << DIGIT) + low).astype(jnp.float32)
  # The product is exact, so that it does not matter if they are fused.
  number = (high.astype(jnp.float32) * 2.0 ** (2 * DIGIT) + rest) / scale
  return jnp.where(bad == 0, number, jnp.float32(jnp.nan))


def scale_for(largest: jax.Array, entries: int) -> jax.Array:
  """The power of two by which `entries` terms up to `largest` stay in range."""
  known = jnp.isfinite(largest) & (largest > 0)
  _, exponent = jnp.frexp(jnp.where(known, largest, jnp.float32(0.5)))
  power = BITS - max(entries - 1, 0).bit_length() - exponent
  # 1 / scale has to be a normal number, too.
  biased = jnp.clip(power, -126, 126).astype(jnp.int32) + 127
  return lax.bitcast_convert_type(biased << 23, jnp.float32)


def terms(index, value, weight, size):
  """Where entries go, `size` for nowhere, and weight * value, f32."""
  inside = (index >= 0) & (index < size)
  value = value.astype(jnp.float32)
  if weight is not None:
    value = jnp.where(weight == 0, jnp.float32(0), weight * value)
  value = jnp.where(inside, value, jnp.float32(0))
  return jnp.where(inside, index, jnp.int32(size)), value


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def sums(index, value, weight, size):
  """sum over n, i of weight[n] * value[n, i] at index[n, i], f32[P]."""
  if index.size == 0 or size == 0:
    return jnp.zeros(size, jnp.float32)
  return lax.platform_dependent(
    index,
    value,
    weight,
    cpu=functools.partial(_by_client, size=size),
    default=functools.partial(_at_once, size=size),
  )


@sums.defjvp
def _sums_jvp(size, primals, tangents):
  return sums(*primals, size), sums_tangent(primals, tangents, size)


def sums_tangent(primals, tangents, size):
  """The derivative of the sum, of whatever way it was computed."""
  at_once = functools.partial(_at_once, size=size)
  return jax.jvp(at_once, tuple(primals), tuple(tangents))[1]


def _by_client(index, value, weight, *, size):
  def add(n, total):
    share = None if weight is None else weight[n]
    where, what = terms(index[n], value[n], share, size)
    return total.at[where].add(what, mode="drop")

  arrays = [x for x in (index, value, weight) if x is not None]
  start = varying_zeros((size,), *arrays)
  return lax.fori_loop(0, index.shape[0], add, start)


def _at_once(index, value, weight, *, size):
  if weight is not None:
    # Here, too, the derivative by a weight of 0 is not 0.
    value = weight[:, None] * finite_if_absent(value, weight)
  where, what = terms(index, value, None, size)
  return jnp.zeros(size, jnp.float32).at[where].add(what, mode="drop")
