"""Attention of a group of devices that hold one row of tokens together.

Two ways, alone or nested.  *Ulysses*: an all-to-all turns "my tokens, all
heads" into "all tokens, my heads" and back; key-value heads are repeated where
there are fewer than devices.  *Ring*: queries stay, keys and values go round;
the heads set no limit.  A group of more devices than the heads allow is a ring
of Ulysses groups.

Tokens of a ring are dealt out like cards (`pack.layout`): rank r holds tokens
r, r + n, r + 2n, ..., so that under a causal mask every rank has the same work
in every step, whatever documents the row holds.

A ring turns in one of two ways.  "shift" sends to the next rank with a
ppermute.  "hypercube" exchanges with the neighbour along one axis of size 2
after the other, in the order of a Gray code, which meets every rank once and
ends at home; it uses collectives over replica groups only, and these may stand
in a branch that some devices do not take, which a ppermute may not.

References:
  Jacobs et al., DeepSpeed Ulysses, 2023, arXiv:2309.14509.  Liu et al., Ring
  Attention with Blockwise Transformers, 2023, arXiv:2310.01889.  Brandon et
  al., Striped Attention, 2023, arXiv:2311.09431.  Fang and Zhao, USP, 2024,
  arXiv:2405.07719.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het.core.errors import unknown
from fedjax_het.core.types import Array
from fedjax_het.models.transformer import Attention
from fedjax_het.seqpar import blockwise
from fedjax_het.seqpar.blockwise import Ids

BLOCK = 128
_TURNS = ("shift", "hypercube")


def head_limit(heads: int) -> int:
  """The largest power of two of devices over which `heads` divide evenly."""
  return heads & -heads


def split_degree(degree: int, limit: int) -> tuple[int, int]:
  """(ring, ulysses) sizes of a group of `degree` devices, both powers of 2.

  Args:
    degree: devices of the group.
    limit: most devices that Ulysses may use; 1 for a ring alone.
  """
  ulysses = min(degree, limit)
  return degree // ulysses, ulysses


def local_attention(block: int = BLOCK) -> Attention:
  """Attention on one device, the reference for all others.

  Args:
    block: tokens of a block.

  Returns:
    An `Attention` in O(T x block) memory.
  """
  return group_attention((), (), block=block)


def group_attention(
  ring: Sequence[str],
  ulysses: Sequence[str],
  *,
  turn: str = "shift",
  block: int = BLOCK,
) -> Attention:
  """Attention over the devices along mesh axes, inside `jax.shard_map`.

  Args:
    ring: axes of the ring, outer first; () for none.
    ulysses: axes of the all-to-all, inner to those of the ring; the product of
      their sizes must divide the heads.
    turn: "shift" or "hypercube" (every axis of the ring has size 2).
    block: tokens of a block.

  Returns:
    An `Attention` over this device's share of a row laid out by `pack.layout`.

  Raises:
    UserError: unknown `turn`.
  """
  if turn not in _TURNS:
    raise unknown("turn of a ring", turn, _TURNS)
  ring, ulysses = tuple(ring), tuple(ulysses)

  def attention(q, k, v, segment, position):
    if not ulysses:
      return _attend(_Ring(turn, ring), block, q, k, v, segment, position)
    size = lax.axis_size(ulysses)
    (q, k, v), (segment, position) = _all_tokens(
      ulysses, size, (q, k, v), (segment, position)
    )
    out = _attend(_Ring(turn, ring), block, q, k, v, segment, position)
    return lax.all_to_all(out, ulysses, 0, 1, tiled=True)

  return attention


def _all_tokens(axes, size, qkv, ids):
  """From my tokens of all heads to all tokens of my heads, in one exchange."""
  q, k, v = qkv
  heads, kv_heads = q.shape[1], k.shape[1]
  if heads % size:
    raise ValueError(f"{heads} heads over {size} devices: Ulysses cannot")
  # every device then has whole key-value heads, those of its own queries
  repeat = math.lcm(kv_heads, size) // kv_heads
  if repeat > 1:
    k, v = (jnp.repeat(x, repeat, axis=1) for x in (k, v))
  parts = [x.reshape(x.shape[0], size, -1, x.shape[2]) for x in (q, k, v)]
  cuts = [parts[0].shape[2], parts[0].shape[2] + parts[1].shape[2]]
  whole = jnp.concatenate(parts, axis=2)  # [T, size, heads, C]
  whole = lax.all_to_all(whole, axes, 1, 0, tiled=True)[:, 0]
  ids = lax.all_gather(jnp.stack(ids), axes, axis=1, tiled=True)
  return jnp.split(whole, cuts, axis=1), (ids[0], ids[1])


class _Ring(NamedTuple):
  """turn, axes: see `group_attention`; without axes, one device."""

  turn: str
  axes: tuple[str, ...]

  @property
  def size(self) -> int:
    return lax.axis_size(self.axes) if self.axes else 1

  def moves(self) -> Array:
    """i32[n]: which move follows each meeting; after all of them, home."""
    n = self.size
    if self.turn == "shift":
      return jnp.zeros(n, jnp.int32)
    flips = [(i & -i).bit_length() - 1 for i in range(1, n)]
    return jnp.array([*flips, max(n.bit_length() - 2, 0)], jnp.int32)

  def move(self, which: Array, tree):
    """What another rank holds: `tree` after one exchange."""
    n = self.size
    if n == 1:
      return tree
    if self.turn == "shift":
      perm = [(i, (i + 1) % n) for i in range(n)]
      return jax.tree.map(lambda x: lax.ppermute(x, self.axes, perm), tree)
    if len(self.axes) == 1:
      return _swap(self.axes[0], tree)
    swaps = [functools.partial(_swap, axis) for axis in reversed(self.axes)]
    return lax.switch(which, swaps, tree)


def _swap(axis: str, tree):
  """The other device's, along an axis of size 2."""
  other = 1 - lax.axis_index(axis)
  return jax.tree.map(lambda x: lax.all_gather(x, axis)[other], tree)


def _attend(ring, block, q, k, v, segment, position):
  tokens, _, channels = q.shape
  block = min(block, tokens)
  ids = blockwise.cut((segment, position), block)
  q, k, v = (
    blockwise.to_blocks(blockwise.pad_rows(x, block), k.shape[1], block)
    for x in (q, k, v)
  )
  out = _ring_attention(ring, q, jnp.stack([k, v]), jnp.stack(ids))
  return blockwise.from_blocks(out, block)[:tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring_attention(ring: _Ring, q: Array, kv: Array, ids: Array) -> Array:
  return _forward(ring, q, kv, ids)[0]


def _forward(ring, q, kv, ids):
  own = Ids(*ids)

  def meet(carry, which):
    partial, here = carry
    coming = ring.move(which, here)  # under way while this block is absorbed
    (k, v), k_ids = here
    return (blockwise.absorb(partial, q, own, k, v, Ids(*k_ids)), coming), None

  carry = blockwise.nothing(q), (kv, ids)
  if ring.size > 1:
    carry, _ = lax.scan(meet, carry, ring.moves()[:-1])
  partial, ((k, v), k_ids) = carry
  partial = blockwise.absorb(partial, q, own, k, v, Ids(*k_ids))
  out, lse = blockwise.finish(partial)
  out = out.astype(q.dtype)
  return out, (q, kv, ids, out, lse)


def _backward(ring, kept, d):
  q, kv, ids, out, lse = kept
  inner = jnp.einsum(
    "qgrc,qgrc->qgr", d, out, preferred_element_type=jnp.float32
  )
  rows, own = (q, d, lse, inner), Ids(*ids)

  def meet(carry, which):
    dq, dkv, here = carry
    coming = ring.move(which, here)
    (k, v), k_ids = here
    dq, dkv = blockwise.pull_back(
      dq, (dkv[0], dkv[1]), rows, own, (k, v), Ids(*k_ids)
    )
    # the gradient of keys travels with them, and comes home with the last move
    return (dq, ring.move(which, jnp.stack(dkv)), coming), None

  zero = jnp.zeros(q.shape, jnp.float32), jnp.zeros(kv.shape, jnp.float32)
  (dq, dkv, _), _ = lax.scan(meet, (*zero, (kv, ids)), ring.moves())
  return dq.astype(q.dtype), dkv.astype(kv.dtype), None


_ring_attention.defvjp(_forward, _backward)
