"""Public functions: signs and bits to planar words (layout.py), and back."""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from fedjax_het_kernels.layout import check_words
from fedjax_het_kernels.pack_signs import xla


def pack_signs(values: jax.Array) -> jax.Array:
  """Packs the signs of an array, 1 bit each.

  Bit = 1 iff value >= 0, so sgn(0) = sgn(-0) = +1.  Padding bits are 0.

  A bit cannot say NaN.  Outside a transformation NaN raises; under jit or vmap
  nothing can, and NaN packs as -1, invisible to whoever reads the words: a
  client must report it beside them, e.g. `Upload.ok = isfinite(values).all()`.

  Args:
    values: f[..., P], any real dtype; batch axes lead.

  Returns:
    uint32[..., W] with W = num_words(P); not differentiable.

  Raises:
    ValueError: concrete values that contain NaN, or complex or no axis.
  """
  values = jnp.asarray(values)
  _check_axis("pack_signs", values)
  if jnp.issubdtype(values.dtype, jnp.complexfloating):
    raise ValueError(f"pack_signs: {values.dtype} values have no sign")
  if not isinstance(values, Tracer) and jnp.isnan(values).any():
    raise ValueError(
      "pack_signs: values contain NaN, which has no sign; drop that client"
    )
  return xla.pack_bits(values >= 0)


def pack_bits(bits: jax.Array) -> jax.Array:
  """Packs a {0, 1} mask, 1 bit each.

  Args:
    bits: bool[..., P]; batch axes lead.

  Returns:
    uint32[..., W] with W = num_words(P); padding bits are 0.

  Raises:
    ValueError: bits is not boolean, or has no axis.
  """
  bits = jnp.asarray(bits)
  _check_axis("pack_bits", bits)
  if bits.dtype != jnp.bool_:
    raise ValueError(
      f"pack_bits: bits must be bool, not {bits.dtype}; for signs of numbers"
      " use pack_signs"
    )
  return xla.pack_bits(bits)


def unpack_signs(words: jax.Array, size: int) -> jax.Array:
  """Unpacks signs: bit 1 is +1, bit 0 is -1.

  Args:
    words: uint32[..., W], made by `pack_signs`.
    size: P, how many signs; static.

  Returns:
    f32[..., P] in {-1, +1}.

  Raises:
    ValueError: words is not uint32[..., num_words(size)].
  """
  one = jnp.float32(1)
  return jnp.where(unpack_bits(words, size), one, -one)


def unpack_bits(words: jax.Array, size: int) -> jax.Array:
  """Unpacks bits.

  Args:
    words: uint32[..., W], made by `pack_bits` or `pack_signs`.
    size: P, how many bits; static.

  Returns:
    bool[..., P].

  Raises:
    ValueError: words is not uint32[..., num_words(size)].
  """
  words = jnp.asarray(words)
  check_words("unpack", words, size)
  return xla.unpack_bits(words, size)


def _check_axis(op: str, array: jax.Array) -> None:
  if array.ndim == 0:
    raise ValueError(f"{op}: give an array [..., P], not a scalar")
