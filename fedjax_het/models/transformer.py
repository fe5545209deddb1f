"""A small decoder-only transformer over packed sequences.

Pre-norm blocks: RMSNorm, rotary positions, grouped-query attention, a gated or
plain MLP; the head may be the embedding itself.  `packed` runs one row of
tokens that holds several documents: a token attends to the earlier ones of its
own segment.  The attention is an argument, so that `seqpar` can put one in
that talks to other devices; everything else acts on each token alone.

A dense layer is a dict {"kernel": W [I, O]}.  With two more leaves, "lora_a"
[I, R] and "lora_b" [R, O], it computes x W + (alpha / R) (x A) B (`models.lora`
puts them in and takes them out).

Shape legend: B rows, T tokens, V vocabulary, H width, N heads, G key-value
heads, C channels of a head, F hidden width, L layers, R rank.

References:
  Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467.
  Su et al., RoFormer, arXiv:2104.09864.  Ainslie et al., GQA, arXiv:2305.13245.
  Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array, Key, Params

#: (q [T, N, C], k [T, G, C], v [T, G, C], segment i32[T], position i32[T]) ->
#: [T, N, C]; segment 0 is padding: it sees nothing and nothing sees it.
Attention = Callable[[Array, Array, Array, Array, Array], Array]

_MLPS = ("gelu", "swiglu")


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


class Shape(NamedTuple):
  """Sizes of a transformer.

  vocabulary: V, 256 for bytes.
  width: H;  layers: L;  heads: N;  kv_heads: G, divides N.
  head_width: C, even;  hidden: F.
  mlp: "swiglu" (three matrices) or "gelu" (two).
  tied: the head is the embedding.
  rope_base: the pairs of a head's channels turn by 1 radian a position down to
    about 1 / rope_base.
  lora_alpha: scale of adapters, alpha / R.
  """

  vocabulary: int = 256
  width: int = 64
  layers: int = 2
  heads: int = 8
  kv_heads: int = 2
  head_width: int = 8
  hidden: int = 128
  mlp: str = "swiglu"
  tied: bool = True
  rope_base: float = 10_000.0
  lora_alpha: float = 16.0


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
  _check(shape)

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


def layer_names(params: Params) -> list[str]:
  """The layers in order: "layer_0", "layer_1", ..."""
  count = sum(name.startswith("layer_") for name in params)
  return [f"layer_{i}" for i in range(count)]


def _check(shape: Shape) -> None:
  sizes = shape[:7]
  if min(sizes) < 1:
    raise UserError(f"{shape}: give positive sizes")
  if shape.heads % shape.kv_heads:
    raise UserError(
      f"{shape.heads} heads over {shape.kv_heads} key-value heads: give a "
      "kv_heads that divides heads"
    )
  if shape.head_width % 2:
    raise UserError(
      f"head_width {shape.head_width}: rotary positions turn pairs of "
      "channels, give an even one"
    )
  if shape.mlp not in _MLPS:
    raise unknown("mlp", shape.mlp, _MLPS)


def _init(shape: Shape, key: Key) -> Params:
  width, inner = shape.width, shape.heads * shape.head_width
  outer = shape.kv_heads * shape.head_width
  # 2 L branches add up: each starts smaller so that the sum stays of size 1
  small = (2 * shape.layers) ** -0.5
  dense = {
    "q": (width, inner, 1.0),
    "k": (width, outer, 1.0),
    "v": (width, outer, 1.0),
    "o": (inner, width, small),
    "gate": (width, shape.hidden, 1.0),
    "up": (width, shape.hidden, 1.0),
    "down": (shape.hidden, width, small),
  }
  if shape.mlp == "gelu":
    del dense["gate"]
  sizes = [i * o for i, o, _ in dense.values()] * shape.layers
  table = shape.vocabulary * width
  # one draw for all: a generator a leaf takes seconds to compile
  drawn = jax.random.normal(key, sum(sizes) + table * (2 - shape.tied))
  cuts = np.cumsum([table, *sizes])
  embed, *kernels, head = jnp.split(drawn, cuts)
  # rows of norm 1, so that tied logits start at size 1 as well
  embed = embed.reshape(-1, width) * width**-0.5
  params = {"embed": {"embedding": embed}}
  for layer in range(shape.layers):
    params[f"layer_{layer}"] = {
      **{
        name: {"kernel": kernels.pop(0).reshape(i, o) * (scale * i**-0.5)}
        for name, (i, o, scale) in dense.items()
      },
      "attention_norm": {"scale": jnp.ones(width)},
      "mlp_norm": {"scale": jnp.ones(width)},
    }
  params["final_norm"] = {"scale": jnp.ones(width)}
  if not shape.tied:
    params["head"] = {"kernel": head.reshape(width, -1) * width**-0.5}
  return params


def _forward(shape, remat, params, tokens, attention):
  x = params["embed"]["embedding"][tokens.token]  # [T, H]
  turn = _rotations(shape, tokens.position)

  def body(x, layer):
    return _layer(shape, layer, x, turn, tokens, attention), None

  # One body for all layers, compiled once: an attention that switches between
  # sequence-parallel degrees is most of the program.
  layers = [params[name] for name in layer_names(params)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
  x, _ = jax.lax.scan(jax.checkpoint(body) if remat else body, x, stacked)
  x = _norm(params["final_norm"], x)
  if shape.tied:
    return x @ params["embed"]["embedding"].T
  return _dense(shape, params["head"], x)


def _layer(shape, layer, x, turn, tokens, attention):
  tall = x.shape[0], -1, shape.head_width
  h = _norm(layer["attention_norm"], x)
  q, k, v = (_dense(shape, layer[n], h).reshape(tall) for n in ("q", "k", "v"))
  q, k = _rotate(q, turn), _rotate(k, turn)
  h = attention(q, k, v, tokens.segment, tokens.position)
  x = x + _dense(shape, layer["o"], h.reshape(x.shape[0], -1))
  h = _norm(layer["mlp_norm"], x)
  up = _dense(shape, layer["up"], h)
  if shape.mlp == "gelu":
    up = jax.nn.gelu(up)
  else:
    up = jax.nn.silu(_dense(shape, layer["gate"], h)) * up
  return x + _dense(shape, layer["down"], up)


def _dense(shape, layer, x):
  y = x @ layer["kernel"]
  if "lora_a" in layer:
    scale = jnp.asarray(shape.lora_alpha / layer["lora_a"].shape[1], y.dtype)
    y = y + (x @ layer["lora_a"]) @ layer["lora_b"] * scale
  return y


def _norm(layer, x):
  size = jnp.square(x).mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt(size + jnp.asarray(1e-6, x.dtype))
  return x * layer["scale"][None]


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
