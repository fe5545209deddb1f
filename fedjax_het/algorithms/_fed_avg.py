"""FedAvg, and FedOpt: FedAvg with any server optimiser.

Down: the global model, 32 P bits.  Up: its change, 32 P bits.
With `server_optimizer=optax.sgd(1.0)` this is FedAvg exactly; with momentum,
`optax.adagrad`, `optax.adam` or `optax.yogi` it is FedAvgM, FedAdagrad, FedAdam
and FedYogi.  With another `gradient` it is any method whose clients keep
nothing and only descend on something else (FedProx, pFedMe, Per-FedAvg).

References:
  McMahan et al.: Communication-Efficient Learning of Deep Networks from
  Decentralized Data, AISTATS 2017, arXiv:1602.05629.
  Reddi et al.: Adaptive Federated Optimization, ICLR 2021, arXiv:2003.00295.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from fedjax_het.core import local, reduce
from fedjax_het.core.types import Algorithm, Model, Params, Upload


class FedAvgState(NamedTuple):
  """params: the global model;  opt_state: of the server's optimiser."""

  params: Params
  opt_state: optax.OptState


def fed_avg(
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  server_optimizer: optax.GradientTransformation | None = None,
  gradient: Callable[[Params], local.Gradient] | None = None,
) -> Algorithm:
  """Averages what clients learn, weighted by their example counts.

  Delta = sum_k n_k (w_k - w) / sum_k n_k is minus the gradient that the server
  optimiser sees (Reddi et al., Algorithm 1).

  Args:
    model: the network.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.
    server_optimizer: default `optax.sgd(1.0)`, plain averaging.
    gradient: (received params) -> what clients descend on; default: the
      gradient of the mean cross-entropy, whatever was received.

  Returns:
    An `Algorithm`; metrics: loss.
  """
  server_optimizer = server_optimizer or optax.sgd(1.0)
  if gradient is None:
    plain = jax.value_and_grad(local.cross_entropy(model))

    def gradient(received):
      del received
      return plain

  def init(key):
    params = model.init(key)
    return FedAvgState(params, server_optimizer.init(params))

  def client(params, state, data, key):
    del state
    result = local.follow(
      gradient(params),
      params,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    delta = jax.tree.map(lambda new, old: new - old, result.params, params)
    weight = data.count.astype("float32")
    return Upload(delta, weight, (), {"loss": result.loss})

  def server(state, delta):
    gradient = jax.tree.map(lambda d: -d, delta)
    return FedAvgState(
      *local.descend(server_optimizer, gradient, state.opt_state, state.params)
    )

  return Algorithm(
    init=init,
    downlink=lambda state, client_id: state.params,
    client=client,
    reducer=reduce.weighted_mean(),
    server=server,
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
  )
