"""The layers that the transformers here share.

Pre-norm blocks: RMSNorm, grouped-query attention, a gated or plain MLP.  What
attends to what is the caller's, everything else acts on each token alone.

A dense layer is a dict {"kernel": W [I, O]}.  With the leaves "lora_a" A
[I, R], "lora_b" B [R, O] and "lora_scale" s [] it computes x W + s (x A) B
(`models.lora` puts them in).  With the leaves "keep_heads" f32[N] and
"keep_channels" f32[F] in every layer, what the heads and the hidden channels
give is multiplied by them: 0 is a head or a channel that structured pruning has
removed.

Shape legend: T tokens, H width, N heads, G key-value heads, C channels of a
head, F hidden width, L layers, R rank.

References:
  Zhang and Sennrich, Root Mean Square Layer Normalization, arXiv:1910.07467.
  Ainslie et al., GQA, arXiv:2305.13245.
  Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array, Key, Params

_MLPS = ("gelu", "swiglu")


class Shape(NamedTuple):
  """Sizes of a transformer.

  vocabulary: V, 256 for bytes.
  width: H;  layers: L;  heads: N;  kv_heads: G, divides N.
  head_width: C, even;  hidden: F.
  mlp: "swiglu" (three matrices) or "gelu" (two).
  tied: the head is the embedding.
  rope_base: the pairs of a head's channels turn by 1 radian a position down to
    about 1 / rope_base.
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


def check(shape: Shape) -> None:
  """Raises a `UserError` for sizes that do not fit each other."""
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


def layer_names(params: Params) -> list[str]:
  """The layers in order: "layer_0", "layer_1", ..."""
  count = sum(name.startswith("layer_") for name in params)
  return [f"layer_{i}" for i in range(count)]


def init_layers(
  shape: Shape, key: Key, others: Sequence[int]
) -> tuple[Params, list[Array]]:
  """Fresh layers, and other normal numbers of the same draw.

  Args:
    shape: sizes.
    key: typed PRNG key.
    others: how many more numbers for each of the other arrays.

  Returns:
    ({"layer_0": ..., "final_norm": ...}, a flat f32 array for each of others).
  """
  width, inner = shape.width, shape.heads * shape.head_width
  outer = shape.kv_heads * shape.head_width
  # 2 L branches add up: each starts smaller so that the sum stays of size 1
  small = (2 * shape.layers) ** -0.5
  matrices = {
    "q": (width, inner, 1.0),
    "k": (width, outer, 1.0),
    "v": (width, outer, 1.0),
    "o": (inner, width, small),
    "gate": (width, shape.hidden, 1.0),
    "up": (width, shape.hidden, 1.0),
    "down": (shape.hidden, width, small),
  }
  if shape.mlp == "gelu":
    del matrices["gate"]
  sizes = [i * o for i, o, _ in matrices.values()] * shape.layers
  # one draw for all: a generator a leaf takes seconds to compile
  drawn = jax.random.normal(key, sum(sizes) + sum(others))
  cuts = np.cumsum([*others, *sizes])[:-1]
  parts = jnp.split(drawn, cuts)
  kernels = parts[len(others) :]
  params = {}
  for layer in range(shape.layers):
    params[f"layer_{layer}"] = {
      **{
        name: {"kernel": kernels.pop(0).reshape(i, o) * (scale * i**-0.5)}
        for name, (i, o, scale) in matrices.items()
      },
      "attention_norm": {"scale": jnp.ones(width)},
      "mlp_norm": {"scale": jnp.ones(width)},
    }
  params["final_norm"] = {"scale": jnp.ones(width)}
  return params, parts[: len(others)]


def run_layers(
  shape: Shape,
  params: Params,
  x: Array,
  attend: Callable[[Array, Array, Array], Array],
  *,
  remat: bool = False,
) -> Array:
  """The layers and the norm behind them: f32[T, H] -> f32[T, H].

  Args:
    shape: sizes.
    params: with "layer_0", ... and "final_norm".
    x: f32[T, H], embedded tokens.
    attend: (q [T, N, C], k [T, G, C], v [T, G, C]) -> [T, N, C].
    remat: recompute each layer in the backward pass.
  """

  def body(x, layer):
    return _layer(shape, layer, x, attend), None

  # One body for all layers, compiled once: an attention that switches between
  # sequence-parallel degrees is most of the program.
  layers = [params[name] for name in layer_names(params)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
  x, _ = jax.lax.scan(jax.checkpoint(body) if remat else body, x, stacked)
  return _norm(params["final_norm"], x)


def _layer(shape, layer, x, attend):
  tall = x.shape[0], -1, shape.head_width
  h = _norm(layer["attention_norm"], x)
  h = attend(*(dense(layer[n], h).reshape(tall) for n in ("q", "k", "v")))
  if "keep_heads" in layer:
    h = h * layer["keep_heads"][None, :, None]
  x = x + dense(layer["o"], h.reshape(x.shape[0], -1))
  h = _norm(layer["mlp_norm"], x)
  up = dense(layer["up"], h)
  if shape.mlp == "gelu":
    up = jax.nn.gelu(up)
  else:
    up = jax.nn.silu(dense(layer["gate"], h)) * up
  if "keep_channels" in layer:
    up = up * layer["keep_channels"][None]
  return x + dense(layer["down"], up)


def dense(layer: Params, x: Array) -> Array:
  """f32[..., I] -> f32[..., O], with the layer's adapter if it has one."""
  y = x @ layer["kernel"]
  if "lora_a" in layer:
    y = y + (x @ layer["lora_a"]) @ layer["lora_b"] * layer["lora_scale"]
  return y


def _norm(layer, x):
  size = jnp.square(x).mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt(size + jnp.asarray(1e-6, x.dtype))
  return x * layer["scale"][None]
