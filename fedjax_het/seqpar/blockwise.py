"""Exact attention over packed documents in O(T x block) memory.

Queries and keys are cut into blocks; a block of queries meets only the blocks
of keys that it can see, so the cost follows the sum of the documents' squared
lengths, not the square of the row.  Softmax is accumulated in float32 as keys
come along, from this device or from others (`Partial`), and the gradient is
written by hand: with the row's log-sum-exp nothing of size T x T is kept.

Layout: queries [Q, G, R, C] with R = (N / G) x block rows of the heads that
share keys; keys and values [K, G, block, C]; see `to_blocks`.

Shape legend: T tokens, N heads, G key-value heads, C channels, Q and K blocks.

References:
  Milakov and Gimelshein, Online normalizer calculation for softmax, 2018,
  arXiv:1805.02867.  Dao et al., FlashAttention, 2022, arXiv:2205.14135.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from fedjax_het.core.types import Array
from fedjax_het.models.transformer import visible

_LOW = -1e30  # instead of -inf, whose differences are NaN


class Ids(NamedTuple):
  """segment, position: i32[K, block]; segment 0 is padding."""

  segment: Array
  position: Array


class Partial(NamedTuple):
  """Softmax-weighted values over the keys so far.

  top: f32[Q, G, R], the largest score.
  total: f32[Q, G, R], sum of exp(score - top).
  mix: f32[Q, G, R, C], sum of exp(score - top) value.
  """

  top: Array
  total: Array
  mix: Array


def to_blocks(x: Array, kv_heads: int, block: int) -> Array:
  """[T, N, C] -> [T / block, G, (N / G) block, C]; keys have N = G."""
  tokens, heads, channels = x.shape
  x = x.reshape(tokens // block, block, kv_heads, heads // kv_heads, channels)
  x = x.transpose(0, 2, 3, 1, 4)
  return x.reshape(tokens // block, kv_heads, -1, channels)


def from_blocks(x: Array, block: int) -> Array:
  """The inverse of `to_blocks`."""
  blocks, kv_heads, _, channels = x.shape
  x = x.reshape(blocks, kv_heads, -1, block, channels)
  return x.transpose(0, 3, 1, 2, 4).reshape(blocks * block, -1, channels)


def nothing(q: Array) -> Partial:
  """The `Partial` before the first key."""
  rows = jnp.zeros(q.shape[:-1], jnp.float32)
  return Partial(rows + _LOW, rows, jnp.zeros(q.shape, jnp.float32))


def absorb(
  partial: Partial, q: Array, q_ids: Ids, k: Array, v: Array, k_ids: Ids
) -> Partial:
  """`partial` after the keys k and values v."""

  def one(_, block):
    partial, q, ids, low, high = block

    def step(j, partial):
      score, seen = _scores(q, ids, k[j], k_ids, j)
      top = jnp.maximum(partial.top, score.max(-1))
      share = jnp.where(seen, jnp.exp(score - top[..., None]), 0)
      faded = jnp.exp(partial.top - top)
      mix = _dot("grs,gsc->grc", share.astype(v.dtype), v[j])
      return Partial(
        top,
        partial.total * faded + share.sum(-1),
        partial.mix * faded[..., None] + mix,
      )

    return None, lax.fori_loop(low, high, step, partial)

  low, high = span(q_ids, k_ids)
  return lax.scan(one, None, (partial, q, q_ids, low, high))[1]


def finish(partial: Partial) -> tuple[Array, Array]:
  """(attention f32[Q, G, R, C], log-sum-exp f32[Q, G, R]).

  A row without keys (padding) gives 0; dividing by a floored total instead
  would make its gradient 0 / 0.
  """
  total = jnp.where(partial.total > 0, partial.total, 1)
  return partial.mix / total[..., None], partial.top + jnp.log(total)


def pull_back(
  dq: Array,
  dkv: tuple[Array, Array],
  rows: tuple[Array, Array, Array, Array],
  q_ids: Ids,
  kv: tuple[Array, Array],
  k_ids: Ids,
) -> tuple[Array, tuple[Array, Array]]:
  """Adds what keys and values kv contribute to the gradients.

  With P the shares, D the gradient of the output O and S the scores,
  dV = P^T D and dS = P (D V^T - rowsum(D O)).

  Args:
    dq: f32[Q, G, R, C], so far;  dkv: f32[K, G, block, C] each, so far.
    rows: q, the output's gradient D, log-sum-exp, rowsum(D O).
    q_ids, kv, k_ids: as in `absorb`.

  Returns:
    (dq, dkv) with this part added.
  """
  k, v = kv

  def one(dkv, block):
    dq, (q, d, lse, inner), ids, low, high = block

    def step(j, carry):
      dq, (dk, dv) = carry
      score, seen = _scores(q, ids, k[j], k_ids, j)
      share = jnp.where(seen, jnp.exp(score - lse[..., None]), 0)
      dv = dv.at[j].add(_dot("grs,grc->gsc", share.astype(d.dtype), d))
      slope = share * (_dot("grc,gsc->grs", d, v[j]) - inner[..., None])
      slope = (slope * _scale(q)).astype(q.dtype)
      dk = dk.at[j].add(_dot("grs,grc->gsc", slope, q))
      return dq + _dot("grs,gsc->grc", slope, k[j]), (dk, dv)

    dq, dkv = lax.fori_loop(low, high, step, (dq, dkv))
    return dkv, dq

  low, high = span(q_ids, k_ids)
  dkv, dq = lax.scan(one, dkv, (dq, rows, q_ids, low, high))
  return dq, dkv


def _dot(spec: str, a: Array, b: Array) -> Array:
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _scale(q: Array) -> float:
  return q.shape[-1] ** -0.5


def _scores(q, q_ids, k, k_ids, j):
  """(scores f32[G, R, block], seen bool[1, R, block]); _LOW where not seen."""
  seen = visible(*q_ids, k_ids.segment[j], k_ids.position[j])
  seen = jnp.tile(seen, (q.shape[1] // seen.shape[0], 1))[None]
  score = _dot("grc,gsc->grs", q, k) * _scale(q)
  return jnp.where(seen, score, _LOW), seen


def span(q_ids: Ids, k_ids: Ids) -> tuple[Array, Array]:
  """For each block of queries, the first and last + 1 block of keys to visit.

  What lies outside is never visible.  In rows packed in order of (segment,
  position) nearly everything inside is.
  """
  q, k = _ends(q_ids), _ends(k_ids)
  q_first, q_last, q_pos = (end[:, None] for end in (q.first, q.last, q.high))
  k_first, k_last, k_pos = (end[None] for end in (k.first, k.last, k.low))
  need = (k_first < q_last) | ((k_first == q_last) & (k_pos <= q_pos))
  need &= (k_last >= q_first) & (q_last > 0) & (k_last > 0)
  blocks = need.shape[1]
  low = jnp.argmax(need, 1)
  high = blocks - jnp.argmax(need[:, ::-1], 1)
  some = need.any(1)
  return jnp.where(some, low, 0), jnp.where(some, high, 0)


class _Ends(NamedTuple):
  """first, last: the extreme segments of each block (last 0: all padding);
  low: smallest position in the first one;  high: largest in the last one."""

  first: Array
  last: Array
  low: Array
  high: Array


def _ends(ids: Ids) -> _Ends:
  far = jnp.iinfo(jnp.int32).max
  first = jnp.where(ids.segment > 0, ids.segment, far).min(1)
  last = ids.segment.max(1)
  low = jnp.where(ids.segment == first[:, None], ids.position, far).min(1)
  high = jnp.where(ids.segment == last[:, None], ids.position, -1).max(1)
  return _Ends(first, last, low, high)


def pad_rows(x: Array, block: int) -> Array:
  """x [T, ...] with zeros up to a multiple of `block` rows."""
  rest = -x.shape[0] % block
  return jnp.pad(x, ((0, rest), *[(0, 0)] * (x.ndim - 1))) if rest else x


def cut(ids: tuple[Array, Array], block: int) -> Ids:
  """(segment, position) [T] as `Ids` [T / block, block], padded."""
  return Ids(*(pad_rows(part, block).reshape(-1, block) for part in ids))
