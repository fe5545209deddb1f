"""How the Triton kernels are launched."""

import math

import jax
import jax.numpy as jnp

from fedjax_het_kernels.overlap_mean import xla

MODULE = "fedjax_het_kernels.overlap_mean.triton"
UNROLL = 4  # entries of a row whose loads may be under way together


def rows(call, *arrays, fields, count):
  """The op by a kernel: see `op.ROWS`."""
  given = dict(zip(fields, arrays, strict=True))
  values = given["values"]
  columns = values.shape[1]
  if values.size == 0 or count == 0:
    return xla.rows(*arrays, fields=fields, count=count)
  if "order" not in given:
    given["order"], given["starts"] = xla.row_index(given["ids"], count)
  # At most 2 loads of 16 bytes a thread and entry (float32).
  block = min(512, max(32, 1 << (columns - 1).bit_length()))
  step = math.gcd(columns, 16)
  inputs = [given[x] for x in ("values", "order", "starts", "weights")]
  return _launch(
    call, "rows", inputs, given.get("old"), (count, columns), (count,),
    grid=(count, -(-columns // block)),
    constexprs={"STEP": step, "BC": block, "UNROLL": UNROLL},
    scalars={"QUOTIENT": columns // step},
    num_warps=max(1, block // 256),
  )  # fmt: skip


def blocks(call, *arrays, fields, shape):
  """The op by a kernel: see `op.BLOCKS`."""
  given = dict(zip(fields, arrays, strict=True))
  values = given["values"]
  if values.size == 0 or 0 in shape:
    return xla.blocks(*arrays, fields=fields, shape=shape)
  flat = values.ndim == 1
  _, height, stride = (0, 0, xla.FLAT_STEP) if flat else values.shape
  step = math.gcd(stride, 16)
  windows = {name: given.get(name) for name in ("row_start", "col_start")}
  inputs = [values, given["rows"], given["cols"], *windows.values()]
  block = 16, 64
  return _launch(
    call, "blocks",
    [x for x in (*inputs, given["weights"]) if x is not None],
    given.get("old"), shape, shape,
    grid=tuple(-(-n // b) for n, b in zip(shape, block, strict=True)),
    constexprs={
      "STEP": step, "FLAT": flat, "BR": block[0], "BC": block[1],
      **{f"{name}_ptr": None for name, x in windows.items() if x is None},
    },
    scalars={
      "N": given["rows"].size, "R": shape[0], "C": shape[1],
      "HEIGHT": height, "QUOTIENT": stride // step,
    },
    num_warps=4,
  )  # fmt: skip


def _launch(
  call, kernel, inputs, old, shape, held, *, grid, constexprs, scalars,
  num_warps,
):  # fmt: skip
  """A kernel that ends in `_finish`: the mean if there is an old value."""
  if old is None:
    outputs = [jax.ShapeDtypeStruct(x, jnp.float32) for x in (shape, held)]
    absent = "old_ptr"
  else:
    inputs = [*inputs, old]
    outputs = [jax.ShapeDtypeStruct(shape, old.dtype)]
    absent = "held_ptr"
  return call(
    f"{MODULE}:{kernel}",
    *inputs,
    outputs=tuple(outputs),
    grid=grid,
    constexprs={**constexprs, absent: None},
    scalars=scalars,
    num_warps=num_warps,
  )
