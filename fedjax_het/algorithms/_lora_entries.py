"""Federated training of low-rank adapters."""

from collections.abc import Callable

import jax
import optax

from fedjax_het.algorithms._entries import Federation, entry
from fedjax_het.algorithms._fed_lora import fed_lora, ffa_lora
from fedjax_het.algorithms._flasc import federated_select, flasc
from fedjax_het.algorithms._het_lora import het_lora
from fedjax_het.algorithms._sparse_adapter import sparse_adapter
from fedjax_het.core.types import Algorithm, Model
from fedjax_het.models.lora import Adapted, adapt


def adapters(model: Model, rank: int) -> Adapted:
  """Adapters in every matrix but the last; the last is trained as it is.

  `adapt` goes by names that end in "kernel"; here any matrix of any model is
  one.
  """
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  leaves, treedef = jax.tree.flatten(shapes)
  matrices = [i for i, leaf in enumerate(leaves) if leaf.ndim == 2]

  def named(params):
    leaves = dict(enumerate(jax.tree.leaves(params)))
    return {
      f"leaf_{i}": {"kernel" if i in matrices else "value": leaf}
      for i, leaf in leaves.items()
    }

  def plain(params):
    found = [
      next(iter(params[f"leaf_{i}"].values())) for i in range(len(leaves))
    ]
    return jax.tree.unflatten(treedef, found)

  inner = adapt(
    Model(
      lambda key: named(model.init(key)),
      lambda params, x: model.apply(plain(params), x),
    ),
    rank=rank,
    targets=[f"leaf_{i}" for i in matrices[:-1]],
    full=[f"leaf_{matrices[-1]}"],
  )
  return Adapted(
    inner.init,
    lambda frozen, trained: plain(inner.join(frozen, trained)),
    lambda frozen, trained: plain(inner.merge(frozen, trained)),
    model,
  )


def _adapted(
  factory: Callable[..., Algorithm], federation: Federation, **options
) -> Algorithm:
  """An instance with adapters of rank 4 and SGD(0.1) in batches of 8."""
  settings = {"optimizer": optax.sgd(0.1), "batch_size": 8} | options
  return factory(adapters(federation.model, 4), **settings)


LORA = {
  "fed_lora": entry(fed_lora, "FedAvg of low-rank adapters", make=_adapted),
  "flasc": entry(
    flasc,
    "adapters through sparse messages, trained densely",
    make=_adapted,
    down_density=(0.5, 0.25),
  ),
  "sparse_adapter": entry(
    sparse_adapter,
    "adapters pruned once after some rounds",
    make=_adapted,
    density=0.5,
    warm_rounds=2,
  ),
  "federated_select": entry(
    federated_select,
    "clients train the adapters' largest entries",
    make=_adapted,
    density=0.5,
  ),
  "het_lora": entry(
    het_lora,
    "tiers of clients train some ranks of the adapters",
    make=_adapted,
    ranks=(1, 4),
    keep="largest",
  ),
  "ffa_lora": entry(
    ffa_lora, "adapters of which only B trains and travels", make=_adapted
  ),
}
