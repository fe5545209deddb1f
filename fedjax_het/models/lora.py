"""Low-rank adapters: a network of which only a small part is trained.

An adapter of a matrix W [I, O] is A [I, R] and B [R, O]; the layer computes
x W + (alpha / R) (x A) B.  What is trained and sent is a flat tree,

  {"lora": {"layer_0/q": {"a": A, "b": B}, ...}, "full": {"head/kernel": ...}},

what stays frozen is the rest of the model.  The transformers (`transformer`,
`vit`) take adapters beside their layers' matrices: W is then shared by all
clients under vmap and no client holds a gradient of its size.  In any other
network W + (alpha / R) A B takes the matrix's place.

References:
  Hu et al., LoRA: Low-Rank Adaptation of Large Language Models,
  arXiv:2106.09685.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Key, Model, Params
from fedjax_het.models._blocks import layer_names


class Adapted(NamedTuple):
  """A model, frozen but for its adapters.

  init: key -> (frozen, trained).
  join: (frozen, trained) -> parameters of `model`; where the model is a
    transformer they hold the adapters beside its matrices.
  merge: (frozen, trained) -> parameters of `model` with the adapters added
    into its matrices.
  model: the network.
  """

  init: Callable[[Key], tuple[Params, Params]]
  join: Callable[[Params, Params], Params]
  merge: Callable[[Params, Params], Params]
  model: Model


def adapt(
  model: Model,
  *,
  rank: int,
  targets: Sequence[str] = ("q", "v"),
  full: Sequence[str] = ("head",),
  base: Params | None = None,
  alpha: float = 16.0,
) -> Adapted:
  """Freezes a model and puts adapters into some of its matrices.

  A is normal with variance 1 / I and B zero, so that the model computes at
  first what it did.

  Args:
    model: the network.
    rank: R >= 1.
    targets: which matrices [I, O] get an adapter: parts of their names, e.g.
      "q" for every "layer_i/q", "Dense_0" for "Dense_0/kernel".
    full: which parameters are trained as they are, parts of names as well.
    base: pretrained parameters; None: fresh ones from the key.
    alpha: scale of the adapters, alpha / R.

  Returns:
    `Adapted`.

  Raises:
    UserError: a rank below 1, no such parameter, one named twice, or a base
      that is not this model's.
  """
  if rank < 1:
    raise UserError(f"a LoRA rank of {rank}: give 1 or more")
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  leaves, treedef = jax.tree.flatten_with_path(shapes)
  leaves = {_name(path): leaf for path, leaf in leaves}
  layers = tuple(f"{layer}/" for layer in layer_names(shapes))
  kernels = {
    name.rpartition("/")[0]: name
    for name in leaves
    if _is_kernel(name, leaves) and (not layers or name.startswith(layers))
  }
  adapted = _chosen("LoRA target", targets, kernels)
  whole = _chosen("fully trained parameter", full, leaves)
  both = [name for name in adapted if kernels[name] in whole]
  if both:
    raise UserError(
      f"{', '.join(both)}: adapted and trained in full as well; take it out of "
      "`targets` or of `full`"
    )
  if base is not None and jax.tree.map(jnp.shape, base) != jax.tree.map(
    jnp.shape, shapes
  ):
    raise UserError(
      "the base's parameters are not those of this model: pretrain the same "
      "model, with the same options"
    )
  scale = alpha / rank

  def init(key):
    base_key, lora_key = jax.random.split(key)
    params = jax.tree.leaves(model.init(base_key) if base is None else base)
    params = dict(zip(leaves, params, strict=True))
    lora = {}
    for number, name in enumerate(adapted):
      wide, tall = leaves[kernels[name]].shape
      own = jax.random.fold_in(lora_key, number)
      lora[name] = {
        "a": jax.random.normal(own, (wide, rank)) * wide**-0.5,
        "b": jnp.zeros((rank, tall)),
      }
    frozen = {k: v for k, v in params.items() if k not in whole}
    return frozen, {"lora": lora, "full": {k: params[k] for k in whole}}

  def unflatten(params):
    return jax.tree.unflatten(treedef, [params[name] for name in leaves])

  def merge(frozen, trained):
    params = frozen | trained["full"]
    for name, adapter in trained["lora"].items():
      where = kernels[name]
      params |= {where: params[where] + scale * (adapter["a"] @ adapter["b"])}
    return unflatten(params)

  def join(frozen, trained):
    params = unflatten(frozen | trained["full"])
    for name, adapter in trained["lora"].items():
      layer, matrix = name.split("/")
      beside = {
        "lora_a": adapter["a"],
        "lora_b": adapter["b"],
        "lora_scale": jnp.asarray(scale, adapter["a"].dtype),
      }
      params[layer][matrix] = params[layer][matrix] | beside
    return params

  return Adapted(init, join if layers else merge, merge, model)


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_kernel(name: str, leaves) -> bool:
  return name.rpartition("/")[2] == "kernel" and len(leaves[name].shape) == 2


def _chosen(kind: str, wanted: Sequence[str], names: Iterable[str]) -> list:
  """The names of which one of `wanted` is a whole part between slashes."""
  names = list(names)
  parts = {name: name.split("/") for name in names}
  for part in wanted:
    if not any(part in of for of in parts.values()):
      known = dict.fromkeys(p for of in parts.values() for p in of)
      raise unknown(kind, part, list(known))
  return [n for n in names if any(part in parts[n] for part in wanted)]
