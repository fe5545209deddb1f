"""FedNova: clients' changes are normalised by how far their steps could reach.

A client that does more local steps moves further, and FedAvg so weights it
twice.  FedNova divides each change by the client's length ||a_k||_1 and takes
the common length back in at the server.

Down: the global model, 32 P bits.  Up: the normalised change and its length,
32 (P + 1) bits.

The length is not a formula here: it is how far the client's own optimiser goes
on a scalar whose gradient is 1 in every step, carried along as one more
parameter.  For SGD that is rate x tau, with momentum, decaying rates or weight
decay the a_k of the paper's section 4 times the rate (rates cancel).  It holds
for optimisers that are linear in the gradients and see each parameter alone:
not Adam, not clipping by global norm.

References:
  Wang et al.: Tackling the Objective Inconsistency Problem in Heterogeneous
  Federated Optimization, NeurIPS 2020, arXiv:2007.07481, section 4.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import local, reduce
from fedjax_het.core.types import Algorithm, Model, Params, Upload


class FedNovaState(NamedTuple):
  """params: the global model."""

  params: Params


def fed_nova(
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """Averages changes per unit of length, then moves by the mean length.

  With p_k = n_k / sum n, d_k = (w_k - w) / ||a_k||_1 and
  tau_eff = sum_k p_k ||a_k||_1, the server sets w += tau_eff sum_k p_k d_k.
  If all clients do equally many steps, this is FedAvg.

  Args:
    model: the network.
    optimizer: the clients' optimiser, linear in the gradients, made afresh
      every round.
    batch_size: B.
    epochs: E, local epochs per round.

  Returns:
    An `Algorithm`; metrics: loss.
  """
  cross_entropy = local.cross_entropy(model)

  def loss(both, batch, key):
    params, probe = both
    unit = probe - jax.lax.stop_gradient(probe)  # value 0, gradient 1
    return cross_entropy(params, batch, key) + unit

  def client(params, state, data, key):
    del state
    result = local.train(
      loss,
      (params, jnp.float32(0)),
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    new, probe = result.params
    length = -probe
    moved = length != 0
    change = optax.tree.scale(
      1 / jnp.where(moved, length, 1), optax.tree.sub(new, params)
    )
    # a client without a step has no direction, and no say
    weight = jnp.where(moved, data.count.astype(jnp.float32), 0)
    return Upload((change, length), weight, (), {"loss": result.loss})

  def server(state, reduced):
    change, length = reduced
    return FedNovaState(optax.tree.add_scale(state.params, length, change))

  return Algorithm(
    init=lambda key: FedNovaState(model.init(key)),
    downlink=lambda state, client_id: state.params,
    client=client,
    reducer=reduce.weighted_mean(),
    server=server,
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
  )
