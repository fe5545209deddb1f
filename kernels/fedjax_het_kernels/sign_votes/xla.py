"""Votes in plain JAX: one pass over the sums for every 8 clients.

How this loop is written decides whether XLA:CPU vectorises it.  It does when
each of the 8 rows is its own dynamic slice of a buffer; it emits scalar code
with mispredicted branches, 50 times slower (measured, jax 0.10.2), when rows
are cut out of a slice that several of them share.  A loop of one trip becomes
just that if the caller scans over chunks, because XLA inlines it; hence at
least two trips.  `tests/kernels/test_sign_votes.py` guards the speed.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.layout import LANES, TILE
from fedjax_het_kernels.pack_signs.xla import single_bits

BLOCK = 8  # rows a pass; more gain nothing and compile longer


def accumulate(
  votes: jax.Array, words: jax.Array, weights: jax.Array
) -> jax.Array:
  """votes [P] + sum_n weights[n] * sign[n], in the dtype of votes."""
  clients, count = words.shape
  if clients == 0 or count == 0:
    return votes
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
  padded = jnp.pad(votes, (0, count // LANES * TILE - votes.size)) + zero
  sums = padded.reshape(-1, TILE // LANES, LANES)
  sums = lax.fori_loop(0, trips, body, sums)
  return sums.reshape(-1)[: votes.size]


def mean(votes: jax.Array, total: jax.Array) -> jax.Array:
  """votes / total as f32, zeros where total is 0; within [-1, 1]."""
  votes, total = votes.astype(jnp.float32), total.astype(jnp.float32)
  ratio = votes / jnp.where(total == 0, jnp.float32(1), total)
  # Float sums of the same weights may differ in the last bit.
  ratio = jnp.clip(ratio, jnp.float32(-1), jnp.float32(1))
  return jnp.where(total == 0, jnp.float32(0), ratio)
