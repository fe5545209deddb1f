"""How the Triton kernels are launched."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_het_kernels.sparse_sum import xla

MODULE = "fedjax_het_kernels.sparse_sum.triton"
BLOCK = 1024  # entries a program: two loads of 16 bytes a thread and array


def total(call, *arrays, fields, size):
  """The op by a kernel: see `op.SUM`."""
  if arrays[0].size == 0 or size == 0:
    return xla.total(*arrays, fields=fields, size=size)
  out = jax.ShapeDtypeStruct((size,), jnp.float32)
  return _launch(call, "add", arrays, fields, size, (out,), {})


def fixed(call, *arrays, fields, size):
  """The op by a kernel: see `op.FIXED`."""
  if arrays[0].size == 0 or size == 0:
    return xla.fixed(*arrays, fields=fields, size=size)
  words, bad = _launch(
    call, "add_fixed", arrays, fields, size,
    (
      jax.ShapeDtypeStruct((size, 2), jnp.uint32),
      jax.ShapeDtypeStruct((1,), jnp.int32),
    ),
    {"LIMIT": 2.0**xla.BITS, "TINY": float(np.finfo(np.float32).tiny)},
  )  # fmt: skip
  low, high = lax.bitcast_convert_type(words, jnp.int32).T
  # The digits of an int64, below bit 54.
  shift, mask = xla.DIGIT, 2**xla.DIGIT - 1
  rest = lax.shift_right_logical(low, jnp.int32(2 * shift))
  high = (high << (32 - 2 * shift)) | rest
  digits = high, (low >> shift) & mask, low & mask
  return jnp.stack(digits), bad


def _launch(call, kernel, arrays, fields, size, outputs, constexprs):
  clients, entries = arrays[0].shape
  stretches = -(-entries // BLOCK)
  absent = {} if "weight" in fields else {"weight_ptr": None}
  return call(
    f"{MODULE}:{kernel}",
    *arrays,
    outputs=outputs,
    grid=(clients * stretches,),
    constexprs={"BLOCK": BLOCK, **constexprs, **absent},
    scalars={"K": entries, "PER_CLIENT": stretches, "P": size},
    zeroed=tuple(range(len(outputs))),
  )
