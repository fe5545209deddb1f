"""How the Triton kernels are launched: in which tiles.

The tiles spill no register on sm_80 and sm_90 and mask a weight in the fewest
instructions that were seen (`aot`, tests/kernels/test_masked_matmul_aot.py);
none was timed on a GPU.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het_kernels.bridge import interprets
from fedjax_het_kernels.masked_matmul import xla

MODULE = "fedjax_het_kernels.masked_matmul.triton"
# Products of float32 on tensor cores: one of 11 bits, or three, which leaves
# about 2^-21 of a product as its error.
DOT = {"default": "tf32", "high": "tf32", "highest": "tf32x3"}


class Tile(NamedTuple):
  """Batch, rows K and columns M of a program, and its warps."""

  batch: int
  rows: int
  columns: int
  warps: int


def matmul(call, x, weights, bits, *, transposed, signed, precision):
  """The op by a kernel: see `op.MATMUL`."""
  rows, columns = weights.shape
  clients, batch = bits.shape[0], x.shape[-2]
  inner, outer = (columns, rows) if transposed else (rows, columns)
  if 0 in (clients, batch, rows, columns):
    return xla.matmul(
      x,
      weights,
      bits,
      transposed=transposed,
      signed=signed,
      precision=precision,
    )
  tile = _matmul_tile(x.dtype, precision, transposed, batch, rows, columns)
  block = tile.rows if transposed else tile.columns
  pairs = x.dtype.itemsize == 2
  return call(
    f"{MODULE}:matmul",
    x,
    weights,
    bits,
    outputs=(jax.ShapeDtypeStruct((clients, batch, outer), x.dtype),),
    grid=(-(-outer // block) * -(-batch // tile.batch) * clients,),
    constexprs={
      "TRANSPOSED": transposed,
      "SIGNED": signed,
      "EVEN": _even(tile, batch, rows, columns),
      "PAIRS": pairs,
      "ASM": pairs and not interprets(call),
      "PRECISION": DOT[precision],
      "BB": tile.batch,
      "BK": tile.rows,
      "BM": tile.columns,
    },
    scalars={
      "B": batch,
      "K": rows,
      "M": columns,
      "INNER": inner,
      "OUTER": outer,
      "XN": 0 if x.ndim == 2 else batch * inner,
    },
    num_warps=tile.warps,
  )


def ste_update(call, x, grad, weights, scores, rate, *, precision):
  """The op by a kernel: see `op.STE_UPDATE`."""
  clients, rows, columns = scores.shape
  batch = x.shape[-2]
  if 0 in (clients, batch, rows, columns):
    return xla.ste_update(x, grad, weights, scores, rate, precision=precision)
  # Memory-bound: small tiles, so that many programs hide its latency.
  tile = Tile(32, 32, 64, 4)
  words = -(-rows // 32)
  return call(
    f"{MODULE}:ste_update",
    x,
    grad,
    weights,
    scores,
    rate,
    outputs=(
      jax.ShapeDtypeStruct(scores.shape, scores.dtype),
      jax.ShapeDtypeStruct((clients, words, columns), jnp.uint32),
    ),
    grid=(-(-columns // tile.columns) * -(-rows // tile.rows) * clients,),
    constexprs={
      "EVEN": _even(tile, batch, rows, columns),
      "PRECISION": DOT[precision],
      "BB": tile.batch,
      "BK": tile.rows,
      "BM": tile.columns,
    },
    scalars={
      "B": batch,
      "K": rows,
      "M": columns,
      "XN": 0 if x.ndim == 2 else batch * rows,
    },
    num_warps=tile.warps,
    num_stages=2,
  )


def _matmul_tile(dtype, precision, transposed, batch, rows, columns) -> Tile:
  # Rows of memory that start off a multiple of 16 bytes are read number by
  # number, and the addresses take the registers.
  aligned = rows % 16 == 0 and columns % 16 == 0
  if dtype.itemsize == 2:
    # More than 64 examples and a transpose need more shared memory than the
    # 99 KiB that a program has on GPUs other than sm_80 and sm_90.
    batches = 128 if aligned and not transposed else 64
    most = Tile(batches, 64, 128 if aligned else 64, 4)
  elif not aligned:
    most = Tile(64, 32, 32, 4)
  else:
    most = Tile(32 if precision == "highest" else 64, 64, 64, 4)
  tile = Tile(
    _cover(batch, 16, most.batch),
    _cover(rows, 32, most.rows),
    _cover(columns, 16, most.columns),
    4,
  )
  return tile._replace(warps=8) if tile.batch == 128 else tile


def _cover(size: int, least: int, most: int) -> int:
  """The power of two that covers size, within bounds."""
  return min(most, max(least, 1 << (size - 1).bit_length()))


def _even(tile, batch, rows, columns) -> bool:
  """Whether no tile reaches over an edge."""
  sizes = zip((batch, rows, columns), tile[:3], strict=True)
  return not any(size % block for size, block in sizes)
