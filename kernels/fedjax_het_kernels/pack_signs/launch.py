"""How the Triton kernels are launched."""

import jax
import jax.numpy as jnp

from fedjax_het_kernels.layout import LANES, num_words
from fedjax_het_kernels.pack_signs import xla

MODULE = "fedjax_het_kernels.pack_signs.triton"
FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def pack(call, values):
  """The op by a kernel: see `op.PACK`."""
  if values.dtype not in FLOATS:
    return xla.pack(values)
  return _launch(call, "pack", (values,))


def sample(call, keys, probabilities):
  """The op by a kernel: see `op.SAMPLE`."""
  return _launch(call, "sample", (keys, probabilities))


def _launch(call, kernel, arrays):
  """One program a tile of 4096 values, which the last array has."""
  *batch, size = arrays[-1].shape
  words = jax.ShapeDtypeStruct((*batch, num_words(size)), jnp.uint32)
  if words.size == 0:
    return (jnp.zeros(words.shape, words.dtype),)
  return call(
    f"{MODULE}:{kernel}",
    *arrays,
    outputs=(words,),
    grid=(words.size // LANES,),
    scalars={"P": size, "TILES": num_words(size) // LANES},
    # The rows of a tile stay in one warp: no shared memory.
    num_warps=1,
  )
