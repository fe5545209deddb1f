"""Public functions: signs and bits to planar words (layout.py), and back."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from fedjax_het_kernels.bridge import Op
from fedjax_het_kernels.layout import check_words
from fedjax_het_kernels.pack_signs import launch, xla

# values [..., P] -> words u32[..., W]
PACK = Op("pack_signs", xla.pack, launch.pack)
# keys u32[..., 2], probabilities f32[..., P] -> words u32[..., W]
SAMPLE = Op("sample_signs", xla.sample, launch.sample)


def pack_signs(
  values: jax.Array, *, implementation: str | None = None
) -> jax.Array:
  """Packs the signs of an array, 1 bit each.

  Bit = 1 iff value >= 0, so sgn(0) = sgn(-0) = +1.  Padding bits are 0.

  A bit cannot say NaN.  Outside a transformation NaN raises; under jit or vmap
  nothing can, and NaN packs as -1, invisible to whoever reads the words: a
  client must report it beside them, e.g. `Upload.ok = isfinite(values).all()`.

  Args:
    values: f[..., P], any real dtype; batch axes lead.
    implementation: None, "xla", "triton" or "interpret": `dispatch.resolve`.

  Returns:
    uint32[..., W] with W = num_words(P); not differentiable.

  Raises:
    ValueError: concrete values that contain NaN, or complex or no axis; an
      unknown implementation.
    NotImplementedError: "triton" on another platform than CUDA.
  """
  values = jnp.asarray(values)
  _check_axis("pack_signs", values)
  if jnp.issubdtype(values.dtype, jnp.complexfloating):
    raise ValueError(f"pack_signs: {values.dtype} values have no sign")
  if not isinstance(values, Tracer) and jnp.isnan(values).any():
    raise ValueError(
      "pack_signs: values contain NaN, which has no sign; drop that client"
    )
  return _run(PACK, implementation, values)


def sample_signs(
  key: jax.Array,
  probabilities: jax.Array,
  *,
  implementation: str | None = None,
) -> jax.Array:
  """Draws a bit a parameter, 1 with the given probability, and packs them.

    bit_p = 1  iff  (u_p + 1/2) / 2^16 < probability_p,   u_p in 0 ... 2^16 - 1

  which float32 decides without rounding, so that every implementation gives the
  same bits.  The chance of a 1 is the probability rounded to a multiple of
  2^-16: off by 2^-17 at most; 0 and 1 are certain.

  u_p is made on the spot by Philox4x32-10, under a key of two words for each
  row of the batch, `jax.random.bits(key, (..., 2), "uint32")`: bit 8g + 2i + h
  of word w is drawn by half h (0: the low one) of output i at the counter
  (w, g, 0, 0).  So no random words travel through memory, which costs most of
  the time of `jax.random.bernoulli`.

  Args:
    key: a typed PRNG key.
    probabilities: f[..., P] in [0, 1], compared as float32; batch axes lead,
      and every parameter of every row draws for itself.
    implementation: as in `pack_signs`.

  Returns:
    uint32[..., W] with W = num_words(P), padding bits 0; not differentiable.

  Raises:
    ValueError: concrete probabilities outside [0, 1] or NaN (under jit those
      below 0 and NaN give 0, those above 1 give 1); no float, or no axis; an
      unknown implementation.
    NotImplementedError: "triton" on another platform than CUDA.

  References:
    Philox: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
    Sampled masks: Isik et al., Sparse random networks for
    communication-efficient federated learning, ICLR 2023.
  """
  probabilities = jnp.asarray(probabilities)
  _check_axis("sample_signs", probabilities)
  if not jnp.issubdtype(probabilities.dtype, jnp.floating):
    raise ValueError(
      f"sample_signs: probabilities must be float, not {probabilities.dtype}"
    )
  if not isinstance(probabilities, Tracer):
    # Not any(outside): that lets NaN through.
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
      raise ValueError("sample_signs: probabilities must be in [0, 1]")
  keys = jax.random.bits(key, (*probabilities.shape[:-1], 2), "uint32")
  probabilities = probabilities.astype(jnp.float32)
  return _run(SAMPLE, implementation, keys, probabilities)


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


def _run(op: Op, implementation, *arrays) -> jax.Array:
  """The op; under vmap still one call, because batch axes lead."""

  @custom_vmap
  def run(*arrays):
    return op(*arrays, implementation=implementation)[0]

  @run.def_vmap
  def _(size, batched, *arrays):
    arrays = [
      x if mapped else jnp.broadcast_to(x, (size, *x.shape))
      for x, mapped in zip(arrays, batched, strict=True)
    ]
    return run(*arrays), True

  return run(*map(jax.lax.stop_gradient, arrays))


def _check_axis(op: str, array: jax.Array) -> None:
  if array.ndim == 0:
    raise ValueError(f"{op}: give an array [..., P], not a scalar")
