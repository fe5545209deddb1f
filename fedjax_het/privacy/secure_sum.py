"""Sums of which the server sees only the total: pairwise additive masks.

Client i holds integers v_i and sends

  y_i = v_i + sum_{j > i} r_ij - sum_{j < i} r_ji   mod 2^b

with r_ij uniform in 0..2^b - 1, expanded from a seed that only i and j hold.
All masks cancel in the sum, which is exact as long as it is below 2^b.  If some
clients do not arrive, the survivors reveal the seeds that they shared with
those; the server expands and takes out what was left over.

Threat model, in plain words: the server is honest but curious.  It runs the
protocol and reads everything it gets.  Clients are honest too: one that sends
nonsense spoils the sum and nobody can tell.  Seeds are agreed outside (by a key
exchange, through a party that is not the server).  Each y_i alone is uniform;
the server learns the sum, who took part, their weights, and nothing else about
the v_i, unless it colludes with all other clients of the cohort.  A client that
is only *late*, whose seeds were revealed and whose upload then arrives, is
exposed: the double masks of Bonawitz et al. that prevent this, and their secret
sharing, are not here.  Nor is it private against the sum itself: the mean of
two clients tells each of them about the other.  JAX's Threefry is a good
generator, not a vetted cipher.

Cost: b bits an integer, where plain one-bit votes take 1; and the seeds of the
dropped pairs, 8 bytes each, once per survivor.

References:
  Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine
  Learning, CCS 2017, section 4 (the masks of 4.0.1).
"""

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key
from fedjax_het.masks.votes import Counts

MAX_TOTAL = 2**24 - 1  # up to here float32 weights add exactly


def bits_for(total: int) -> int:
  """b, the bits that hold sums of 0 to `total`.

  Raises:
    UserError: a total that is not in 1 to 2^24 - 1.
  """
  if not 1 <= total <= MAX_TOTAL:
    raise UserError(f"the largest sum must be in 1 to {MAX_TOTAL}, got {total}")
  return int(total).bit_length()


def pair_masks(seed: Key, me: Array, peers: Array, size: int) -> Array:
  """What client `me` adds: the signed masks of its pairs with `peers`.

  Args:
    seed: of this round, from which all pairs' seeds come; the server has none
      of them.
    me: i32[].
    peers: bool[N], with whom; `me` itself does not count.
    size: how many integers.

  Returns:
    u32[size], modulo 2^32; any b <= 32 may be cut out of it.
  """

  def add(other, total):
    low, high = jnp.minimum(me, other), jnp.maximum(me, other)
    pair = jax.random.fold_in(jax.random.fold_in(seed, low), high)
    mask = jax.random.bits(pair, (size,), jnp.uint32)
    return jnp.where(me < other, total + mask, total - mask)

  def step(other, total):
    return jax.lax.cond(
      peers[other] & (other != me),
      lambda total: add(other, total),
      lambda total: total,
      total,
    )

  return jax.lax.fori_loop(0, peers.shape[0], step, jnp.zeros(size, jnp.uint32))


def mask_upload(values: Array, masks: Array, total: int) -> Counts:
  """y = values + masks mod 2^b, b bits an integer on the wire.

  Args:
    values: i32 or u32[n], >= 0; the cohort's sum is at most `total`.
    masks: u32[n], from `pair_masks`.
    total: the largest sum.
  """
  modulus = 2 ** bits_for(total)
  masked = (values.astype(jnp.uint32) + masks) % jnp.uint32(modulus)
  return Counts(masked.astype(jnp.int32), modulus - 1)


def left_over(seed: Key, present: Array, expected: Array, size: int) -> Array:
  """The masks that did not cancel, from the seeds that survivors reveal.

  Args:
    seed: of this round; only the pairs (arrived, missing) are expanded.
    present: bool[N], who arrived.
    expected: bool[N], with whom clients masked.
    size: how many integers.

  Returns:
    u32[size] modulo 2^32, to be subtracted from the sum of the uploads.
  """
  missing = expected & ~present

  def step(client, total):
    return jax.lax.cond(
      present[client],
      lambda total: total + pair_masks(seed, client, missing, size),
      lambda total: total,
      total,
    )

  return jax.lax.fori_loop(
    0, present.shape[0], step, jnp.zeros(size, jnp.uint32)
  )


def unmask(uploads: Array, masks: Array, total: int) -> Array:
  """The sum of the clients' integers.

  Args:
    uploads: u32[n], the sum of what arrived modulo 2^32 (or any 2^k >= 2^b).
    masks: u32[n], from `left_over`; zeros if nobody was dropped.
    total: the largest sum, as in `mask_upload`.

  Returns:
    i32[n] in 0..total.
  """
  modulus = jnp.uint32(2 ** bits_for(total))
  return ((uploads - masks) % modulus).astype(jnp.int32)
