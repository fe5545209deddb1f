"""Low-rank adapters in the matrices of a transformer.

An adapter is two leaves beside a kernel W [I, O]: the layer then computes
x W + (alpha / R) (x A) B.  A method that trains and sends adapters only keeps
`split_lora`'s second part as its parameters and joins it to the frozen first
part wherever it calls the model.

References:
  Hu et al., LoRA: Low-Rank Adaptation of Large Language Models,
  arXiv:2106.09685.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Key, Params
from fedjax_het.models.transformer import layer_names


def add_lora(
  key: Key, params: Params, rank: int, targets: Sequence[str] = ("q", "v")
) -> Params:
  """`params` with adapters of `rank` in the layers' matrices `targets`.

  A is normal with variance 1 / I, B zero: the model computes what it did.

  Args:
    key: typed PRNG key.
    params: of a `Transformer`.
    rank: R >= 1; clients may have different ones.
    targets: among q, k, v, o, gate, up, down.

  Raises:
    UserError: no such matrix, or a rank below 1.
  """
  if rank < 1:
    raise UserError(f"a LoRA rank of {rank}: give 1 or more")
  out = dict(params)
  for number, name in enumerate(layer_names(params)):
    layer = dict(params[name])
    dense = [k for k, v in layer.items() if "kernel" in v]
    for target in targets:
      if target not in dense:
        raise unknown("LoRA target", target, dense)
      kernel = layer[target]["kernel"]
      wide, tall = kernel.shape
      own = jax.random.fold_in(key, number * len(dense) + dense.index(target))
      a = jax.random.normal(own, (wide, rank), kernel.dtype)
      layer[target] = {
        "kernel": kernel,
        "lora_a": a * wide**-0.5,
        "lora_b": jnp.zeros((rank, tall), kernel.dtype),
      }
    out[name] = layer
  return out


def split_lora(params: Params) -> tuple[Params, Params]:
  """(params without adapters, adapters alone); `join_lora` is the inverse."""
  base, adapters = {}, {}
  for name, value in params.items():
    if name.startswith("lora_"):
      adapters[name] = value
    elif isinstance(value, dict):
      base[name], below = split_lora(value)
      if below:
        adapters[name] = below
    else:
      base[name] = value
  return base, adapters


def join_lora(base: Params, adapters: Params) -> Params:
  """Puts adapters back where `split_lora` took them out."""
  out = dict(base)
  for name, value in adapters.items():
    out[name] = join_lora(base[name], value) if name in base else value
  return out
