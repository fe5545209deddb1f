"""FedDyn: a dynamic regulariser that makes local and global optima agree.

Down: the global model, 32 P bits.  Up: its change, 32 P bits.  A client keeps
32 P bits.

The paper's gradients g_k and state h are kept divided by -alpha: s_k, the sum
of the client's changes so far, and H, the sum of all changes over N.  Nothing
is then divided by alpha, which may be 0.  Clients count evenly, as in the
paper; its released code also clips gradients, here that is the optimiser's
business.

References:
  Acar et al.: Federated Learning Based on Dynamic Regularization, ICLR 2021,
  arXiv:2111.04263, Algorithm 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import local, reduce
from fedjax_het.core.types import Algorithm, Array, Model, Params, Upload


class FedDynState(NamedTuple):
  """params: theta, the global model;  drift: H = -h / alpha."""

  params: Params
  drift: Params


def fed_dyn(
  model: Model,
  *,
  num_clients: int,
  alpha: Array | float,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """Clients descend on L_k(w) - <g_k, w> + alpha / 2 ||w - w^t||^2.

  With g_k = -alpha s_k, a client adds its change to s_k, and the server sets
  H += |S| / N mean(change) and w += mean(change) + H over the |S| clients that
  arrived.  alpha -> 0 is not FedAvg: H stays, so with everybody taking part
  this is evenly weighted FedAvg with Nesterov momentum 1 at the server.

  Args:
    model: the network.
    num_clients: N, the whole population.
    alpha: strength of the regulariser; the paper tries 0.001 to 0.1.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.

  Returns:
    An `Algorithm`; metrics: loss, without the regulariser.
  """
  gradient = jax.value_and_grad(local.cross_entropy(model))

  def init(key):
    params = model.init(key)
    return FedDynState(params, optax.tree.zeros_like(params))

  def client(params, sum_of_changes, data, key):
    # -g_k + alpha (w - w^t) = alpha (w - (w^t - s_k))
    center = optax.tree.sub(params, sum_of_changes)
    result = local.follow(
      local.corrected(gradient, local.pull(center, alpha)),
      params,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    change = optax.tree.sub(result.params, params)
    return Upload(
      change,
      jnp.float32(1),
      optax.tree.add(sum_of_changes, change),
      {"loss": result.loss},
    )

  def server(state, reduced):
    change, arrived = reduced
    drift = optax.tree.add_scale(state.drift, arrived / num_clients, change)
    moved = optax.tree.add(state.params, change)
    return FedDynState(optax.tree.add(moved, drift), drift)

  return Algorithm(
    init=init,
    downlink=lambda state, client_id: state.params,
    client=client,
    reducer=reduce.mean_and_weight(),
    server=server,
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
    init_client=lambda key: optax.tree.zeros_like(model.init(key)),
  )
