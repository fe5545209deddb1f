"""How the Triton kernels are launched: which one, in which blocks."""

import jax
import jax.numpy as jnp

from fedjax_het_kernels.bridge import interprets
from fedjax_het_kernels.layout import LANES
from fedjax_het_kernels.sign_votes import xla

MODULE = "fedjax_het_kernels.sign_votes.triton"
CHUNK = 248  # clients whose count fits 8 bit planes, in blocks of 8
# dp4a adds weight bytes shifted by up to 7 bits in uint32.
MOST_CLIENTS = 2**32 // (255 * 128) - 4
MANY = 3  # weightings from which tensor cores pay


def votes(call, *arrays, fields, size, output):
  """The op by kernels: see `op.VOTES`."""
  given = dict(zip(fields, arrays, strict=True))
  words, weights = given["words"], given.get("weights")
  clients, count = words.shape
  if clients == 0 or count == 0:
    return xla.votes(*arrays, fields=fields, size=size, output=output)
  if weights is None:
    return _equal(call, given, size, output)
  small = weights.dtype in (jnp.uint8, jnp.uint16)
  if small and clients <= MOST_CLIENTS:
    return _integer(call, given, size, output)
  if weights.dtype == jnp.float32 and weights.shape[0] >= MANY:
    return _many(call, given, size, output)
  if small:
    given["weights"] = weights.astype(jnp.int32)
  return _select(call, given, size, output)


def _select(call, given, size, output):
  words, weights = given["words"], given["weights"]
  block = _words_per_program(words)
  total = weights.sum(axis=1, dtype=weights.dtype)
  return _launch(
    call, "select", given, [words, weights, total], size, output,
    grid=(words.shape[1] // block, weights.shape[0]),
    constexprs={"BT": block, "UNROLL": 8},
    scalars={"N": words.shape[0]},
  )  # fmt: skip


def _integer(call, given, size, output):
  words, weights = given["words"], given["weights"]
  block = _words_per_program(words)
  rows, clients = weights.shape
  pad = -clients % 4
  total = weights.sum(axis=1, dtype=jnp.int32)
  quads = jnp.pad(weights, ((0, 0), (0, pad))).reshape(rows, -1, 4)
  low = _join_bytes(quads & 255)
  wide = weights.dtype == jnp.uint16
  absent = {} if wide else {"high_ptr": None}
  high = [_join_bytes(quads >> 8)] if wide else []
  return _launch(
    call, "counts", given, [words, low, *high, total], size, output,
    grid=(words.shape[1] // block, rows),
    constexprs={
      "BT": block, "UNROLL": 2, "ASM": not interprets(call), **absent,
    },
    scalars={"N": clients, "GROUPS": low.shape[1]},
  )  # fmt: skip


def _equal(call, given, size, output):
  words = given["words"]
  clients, count = words.shape
  chunks, block = -(-clients // CHUNK), 512
  (planes,) = call(
    f"{MODULE}:planes",
    words,
    outputs=(jax.ShapeDtypeStruct((chunks, 8, count), jnp.uint32),),
    grid=(-(-count // block), chunks),
    constexprs={"CHUNK": CHUNK, "BW": block},
    scalars={"N": clients, "W": count},
  )
  block = _words_per_program(words)
  return _launch(
    call, "finish", given, [planes], size, output,
    grid=(count // block, 1),
    constexprs={"BT": block},
    scalars={"N": clients, "S": chunks},
  )  # fmt: skip


def _many(call, given, size, output):
  words, weights = given["words"], given["weights"]
  rows, block, planes = weights.shape[0], 16, 8
  padded = max(16, 1 << (rows - 1).bit_length())
  weights_split = jnp.pad(split(weights), ((0, 0), (0, padded - rows), (0, 0)))
  (sums,) = call(
    f"{MODULE}:clusters",
    words,
    weights_split,
    outputs=(jax.ShapeDtypeStruct((rows, size), jnp.float32),),
    grid=(words.shape[1] // block, 32 // planes),
    constexprs={"BK": padded, "BN": 32, "BT": block, "PLANES": planes},
    scalars={"N": words.shape[0], "W": words.shape[1], "P": size, "K": rows},
  )
  base, keep = given.get("base"), given.get("keep")
  if output == "sum" and base is not None:
    sums = sums + base
  kept = None if keep is None else xla.unpack_bits(keep, size)
  finish = jax.vmap(
    lambda sums, total, base: xla.finish(
      sums, total, output, base, kept, given.get("rate")
    ),
    (0, 0, None if base is None else 0),
  )
  return finish(sums, weights.sum(axis=1), base)


def split(weights: jax.Array) -> jax.Array:
  """f32[...] as three terms of at most 11 significant bits: f32[3, ...].

  A tf32 operand has 11; the terms add up to the weight exactly.
  """

  def cut(x):
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFE000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)

  first = cut(weights)
  second = cut(weights - first)
  return jnp.stack([first, second, weights - first - second])


def _launch(
  call, kernel, given, inputs, size, output, *, grid, constexprs, scalars
):
  """A kernel that ends in `_write`: optional arrays and outputs are None."""
  words = given["words"]
  rows = grid[1]
  dtype = jnp.float32
  if output == "sum":
    base, weights = given.get("base"), given.get("weights")
    if base is not None:
      dtype = base.dtype
    elif weights is None or weights.dtype != jnp.float32:
      dtype = jnp.int32
  shapes, constexprs = [], dict(constexprs, OUTPUT=output)
  for field in ("rate", "base", "keep"):
    if field in given:
      inputs = [*inputs, given[field]]
    else:
      constexprs[f"{field}_ptr"] = None
  if output == "majority":
    constexprs["out_ptr"] = None
  else:
    shapes.append(jax.ShapeDtypeStruct((rows, size), dtype))
  if output in ("majority", "step"):
    shapes.append(jax.ShapeDtypeStruct((rows, words.shape[1]), jnp.uint32))
  else:
    constexprs["packed_ptr"] = None
  return call(
    f"{MODULE}:{kernel}",
    *inputs,
    outputs=tuple(shapes),
    grid=grid,
    constexprs=constexprs,
    scalars={**scalars, "W": words.shape[1], "P": size},
  )


def _words_per_program(words) -> int:
  """A whole tile, or a part of one where there are too few to fill a GPU."""
  programs = words.shape[1] // LANES
  return LANES if programs >= 1024 else 64 if programs >= 512 else 32


def _join_bytes(quads):
  """[K, G, 4] below 256 -> u32[K, G], the first client in the lowest byte."""
  shifts = jnp.array([0, 8, 16, 24], jnp.uint32)
  words = quads.astype(jnp.uint32) << shifts[None, None, :]
  return words.sum(axis=-1, dtype=jnp.uint32)
