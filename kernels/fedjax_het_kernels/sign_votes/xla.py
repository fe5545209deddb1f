"""Votes in plain JAX: one pass over the sums for every 8 clients.

How this loop is written decides whether XLA:CPU vectorises it.  It does when
each of the 8 rows is its own dynamic slice of a buffer; it emits scalar code
with mispredicted branches, 50 times slower (measured, jax 0.10.2), when rows
are cut out of a slice that several of them share.  A loop of one trip becomes
just that if the caller scans over chunks, because XLA inlines it; hence at
least two trips.  A slow test in `tests/kernels/test_sign_votes.py` guards the
speed.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.layout import LANES, TILE
from fedjax_het_kernels.pack_signs.xla import (
  pack_bits,
  single_bits,
  unpack_bits,
)

BLOCK = 8  # rows a pass; more gain nothing and compile longer


def votes(
  *arrays: jax.Array, fields: tuple[str, ...], size: int, output: str
) -> tuple[jax.Array, ...]:
  """The op: see `op.VOTES`."""
  given = dict(zip(fields, arrays, strict=True))
  words, keep, base = given["words"], given.get("keep"), given.get("base")
  weights = given.get("weights")
  if weights is None:
    dtype = base.dtype if output == "sum" and base is not None else jnp.int32
    weights = jnp.ones((1, words.shape[0]), dtype)
  elif weights.dtype in (jnp.uint8, jnp.uint16):
    weights = weights.astype(jnp.int32)
  kept = None if keep is None else unpack_bits(keep, size)

  def one(weights, base):
    start = jnp.zeros(size, weights.dtype)
    if output == "sum" and base is not None:
      start = base
    sums = accumulate(start, words, weights)
    total = weights.sum(dtype=weights.dtype)
    return finish(sums, total, output, base, kept, given.get("rate"))

  if weights.shape[0] == 1:
    rows = one(weights[0], None if base is None else base[0])
    return tuple(row[None] for row in rows)
  if base is None:
    return lax.map(lambda w: one(w, None), weights)
  return lax.map(lambda row: one(*row), (weights, base))


def finish(sums, total, output, base=None, kept=None, rate=None):
  """Sums [P] of weights that add up to total, to the outputs of the op."""
  if output == "sum":
    return (_keep(sums, kept),)
  if output == "majority":
    bits = sums >= 0
    return (pack_bits(bits if kept is None else bits & kept),)
  ratio = mean(sums, total)
  if output == "mean":
    return (_keep(ratio, kept),)
  new = base + rate[0] * ratio
  bits = new >= 0
  return _keep(new, kept), pack_bits(bits if kept is None else bits & kept)


def accumulate(
  sums: jax.Array, words: jax.Array, weights: jax.Array
) -> jax.Array:
  """sums [P] + sum_n weights[n] * sign[n], in the dtype of sums."""
  clients, count = words.shape
  if clients == 0 or count == 0:
    return sums
  trips = max(-(-clients // BLOCK), min(clients, 2))
  rows = -(-clients // trips)
  # Rows past the end: the slice clamps to the last client, with weight 0.
  weights = jnp.pad(weights, (0, trips * rows - clients))
  bits = single_bits(3)

  def body(i, sums):
    for r in range(rows):
      row = lax.dynamic_index_in_dim(words, i * rows + r, keepdims=False)
      weight = weights[i * rows + r]
      ones = (row.reshape(-1, 1, LANES) & bits) != 0
      sums = sums + jnp.where(ones, weight, -weight)
    return sums

  # Always 0, but under shard_map it varies over the mesh axes that words and
  # weights vary over, and the carry of a loop has to from the start.
  zero = jnp.where(words[0, 0] != words[0, 0], weights[0], 0)
  padded = jnp.pad(sums, (0, count // LANES * TILE - sums.size)) + zero
  planes = padded.reshape(-1, TILE // LANES, LANES)
  planes = lax.fori_loop(0, trips, body, planes)
  return planes.reshape(-1)[: sums.size]


def mean(sums: jax.Array, total: jax.Array) -> jax.Array:
  """sums / total as f32, zeros where total is 0; within [-1, 1]."""
  sums, total = sums.astype(jnp.float32), total.astype(jnp.float32)
  ratio = sums / jnp.where(total == 0, jnp.float32(1), total)
  # Float sums of the same weights may differ in the last bit.
  ratio = jnp.clip(ratio, jnp.float32(-1), jnp.float32(1))
  return jnp.where(total == 0, jnp.float32(0), ratio)


def _keep(values, kept):
  if kept is None:
    return values
  return jnp.where(kept, values, jnp.zeros((), values.dtype))
