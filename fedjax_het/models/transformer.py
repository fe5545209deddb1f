"""A small decoder-only transformer over packed sequences.

The layers are those of `_blocks`, with rotary positions; the head may be the
embedding itself.  `packed` runs one row of tokens that holds several documents:
a token attends to the earlier ones of its own segment.  The attention is an
argument, so that `seqpar` can put one in that talks to other devices.

Shape legend: B rows, T tokens, V vocabulary, H width, N heads, G key-value
heads, C channels of a head.

References:
  Su et al., RoFormer, arXiv:2104.09864.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key, Model, Params
from fedjax_het.models._blocks import (
  Shape,
  check,
  dense,
  init_layers,
  run_layers,
)

#: (q [T, N, C], k [T, G, C], v [T, G, C], segment i32[T], position i32[T]) ->
#: [T, N, C]; segment 0 is padding: it sees nothing and nothing sees it.
Attention = Callable[[Array, Array, Array, Array, Array], Array]


class Tokens(NamedTuple):
  """A row of packed documents, padded at the end.

  token: i32[T].
  target: i32[T], what comes next in the same document (0 where nothing does).
  segment: i32[T], the documents numbered from 1; 0 for padding.
  position: i32[T], from 0 in each document.
  weight: f32[T], of the target in the loss; 0 where there is none.
  """

  token: Array
  target: Array
  segment: Array
  position: Array
  weight: Array


class Transformer(NamedTuple):
  """A transformer as pure functions; serves wherever a `Model` does.

  init: key -> params.
  apply: (params, x i32[B, T]) -> logits f32[B, T, V], each row one document
    (what pads its end changes nothing before it).
  packed: (params, Tokens, attention) -> logits f32[T, V].
  shape: its sizes.
  """

  init: Callable[[Key], Params]
  apply: Callable[[Params, Array], Array]
  packed: Callable[[Params, Tokens, Attention], Array]
  shape: Shape


def transformer(shape: Shape | None = None, *, remat: bool = False):
  """Builds a `Transformer`.

  Args:
    shape: its sizes.
    remat: recompute each layer in the backward pass: memory O(L T H) for the
      layers' inputs instead of everything inside, for a third more time.

  Returns:
    A `Transformer`.

  Raises:
    UserError: sizes that do not fit each other.
  """
  shape = Shape() if shape is None else shape
  check(shape)

  def packed(params, tokens, attention):
    return _forward(shape, remat, params, tokens, attention)

  def row(params, x):
    zeros = jnp.zeros_like(x)
    position = jnp.arange(x.shape[0], dtype=x.dtype)
    tokens = Tokens(x, zeros, zeros + 1, position, zeros)
    return packed(params, tokens, dense_attention)

  def apply(params, x):
    if x.ndim != 2:
      raise UserError(f"a transformer takes x [B, T], got {list(x.shape)}")
    return jax.vmap(row, (None, 0))(params, x)

  return Transformer(lambda key: _init(shape, key), apply, packed, shape)


def last_token(network: Transformer) -> Model:
  """The same network, judged by what follows a window: logits f32[B, V].

  It is trained at every place (`core.local.next_tokens` of the transformer
  itself) and evaluated here as a classifier of the token behind x i32[B, T].
  """
  return Model(network.init, lambda params, x: network.apply(params, x)[:, -1])


def dense_attention(
  q: Array, k: Array, v: Array, segment: Array, position: Array
) -> Array:
  """Softmax attention in O(T^2) memory, the definition (see `Attention`)."""
  tokens, heads, channels = q.shape
  q = q.reshape(tokens, k.shape[1], -1, channels)  # [T, G, N / G, C]
  score = jnp.einsum("tgnc,sgc->gnts", q, k) / jnp.sqrt(
    jnp.asarray(channels, q.dtype)
  )
  seen = visible(segment, position, segment, position)[None, None]
  score = jnp.where(seen, score, jnp.asarray(-1e30, q.dtype))
  share = jnp.where(seen, jax.nn.softmax(score, -1), jnp.zeros((), q.dtype))
  out = jnp.einsum("gnts,sgc->tgnc", share, v)
  return out.reshape(tokens, heads, channels)


def visible(
  q_segment: Array, q_position: Array, k_segment: Array, k_position: Array
) -> Array:
  """bool[T, S]: which keys [S] each query [T] sees."""
  same = q_segment[:, None] == k_segment[None]
  earlier = q_position[:, None] >= k_position[None]
  return same & earlier & (q_segment > 0)[:, None]


def _init(shape: Shape, key: Key) -> Params:
  table = shape.vocabulary * shape.width
  layers, tables = init_layers(shape, key, [table] * (2 - shape.tied))
  # rows of norm 1, so that tied logits start at size 1 as well
  first, *head = (
    t.reshape(-1, shape.width) * shape.width**-0.5 for t in tables
  )
  params = {"embed": {"embedding": first}, **layers}
  if head:
    params["head"] = {"kernel": head[0].T}
  return params


def _forward(shape, remat, params, tokens, attention):
  x = params["embed"]["embedding"][tokens.token]  # [T, H]
  turn = _rotations(shape, tokens.position)

  def attend(q, k, v):
    q, k = _rotate(q, turn), _rotate(k, turn)
    return attention(q, k, v, tokens.segment, tokens.position)

  x = run_layers(shape, params, x, attend, remat=remat)
  if shape.tied:
    return x @ params["embed"]["embedding"].T
  return dense(params["head"], x)


def _rotations(shape, position):
  """(cos, sin) f32[T, 1, C / 2] of position x base^(-2i / C)."""
  half = shape.head_width // 2
  rate = shape.rope_base ** -(jnp.arange(half, dtype=jnp.float32) / half)
  angle = position[:, None].astype(jnp.float32) * rate[None]
  return jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]


def _rotate(x, turn):
  """Turns the pairs (channel i, channel i + C / 2) of x [T, N, C]."""
  cos, sin = (part.astype(x.dtype) for part in turn)
  a, b = jnp.split(x, 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
