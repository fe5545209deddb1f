"""FedSpine among the methods of the registry."""

import jax
import jax.numpy as jnp

from fedjax_het.algorithms._arm_bandit import ArmSpace
from fedjax_het.algorithms._entries import Federation, entry, plain
from fedjax_het.algorithms._fed_spine import fed_spine
from fedjax_het.algorithms._lora_importance import Ramp
from fedjax_het.algorithms._spine_server import Costs
from fedjax_het.core.types import Algorithm, Model


def _by_bandits(factory, federation: Federation, **options) -> Algorithm:
  """An instance for devices of which the slowest takes ten times as long.

  It takes chains of dense layers only: how many heads a transformer has cannot
  be seen in its parameters.
  """
  slow = jnp.geomspace(0.1, 1.0, federation.num_clients)
  named, bare = _named(federation.model)
  shapes = jax.eval_shape(named.init, jax.random.key(0))
  first, *_, last = shapes
  algorithm = plain(
    factory,
    federation._replace(model=named),
    arms=ArmSpace(ranks=(1, 2, 4)),
    costs=Costs(slow, 1e-5 * slow),
    ramp=Ramp(60, warm_up=5, cool_down=20),
    targets=(first,),
    full=(last,),
    **options,
  )
  return algorithm._replace(
    global_params=lambda state: bare(algorithm.global_params(state)),
    predict=lambda *of: bare(algorithm.predict(*of)),
  )


def _named(model: Model):
  """The model with its bare matrices as {"kernel": ...}, and the way back."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  bare = [k for k, v in shapes.items() if getattr(v, "ndim", 0) == 2]

  def name(params):
    return params | {k: {"kernel": params[k]} for k in bare}

  def strip(params):
    return params | {k: params[k]["kernel"] for k in bare}

  named = Model(
    lambda key: name(model.init(key)),
    lambda params, x: model.apply(strip(params), x),
  )
  return named, strip


SPINE = {
  "fed_spine": entry(
    fed_spine,
    "adapters and structured pruning, a bandit chooses ratio and rank",
    make=_by_bandits,
    prune_every=2,
  ),
}
