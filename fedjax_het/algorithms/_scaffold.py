"""SCAFFOLD: control variates take the clients' drift out of their steps.

Down: the model and the server's variate, 64 P bits.  Up: the changes of the
model and of the client's variate, 64 P bits.  A client keeps its variate, 32 P
bits.

Clients count evenly, as in the paper: the server's variate is the plain mean of
all clients' variates.  Their variates follow option II; the paper's option I
(the gradient at the received model) costs a pass over the data.

References:
  Karimireddy et al.: SCAFFOLD: Stochastic Controlled Averaging for Federated
  Learning, ICML 2020, arXiv:1910.06378, Algorithm 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import local, reduce
from fedjax_het.core.types import Algorithm, Array, Model, Params, Upload


class ScaffoldState(NamedTuple):
  """params: x, the global model;  control: c, mean of the clients' variates."""

  params: Params
  control: Params


def scaffold(
  model: Model,
  *,
  num_clients: int,
  rate: Array | float,
  batch_size: int,
  epochs: int = 1,
  server_rate: Array | float = 1.0,
) -> Algorithm:
  """Clients step along g(y) - c_k + c.

  After K steps from x to y, a client sets
  c_k+ = c_k - c + (x - y) / (K rate); the server sets
  x += server_rate mean(y - x) and c += |S| / N mean(c_k+ - c_k) over the |S|
  clients that arrived.  Variates start at zero: the first round is evenly
  weighted FedAvg, and so are all rounds if every client takes part and does
  one full-batch step.

  Args:
    model: the network.
    num_clients: N, the whole population.
    rate: the clients' learning rate; they do plain SGD.
    batch_size: B.
    epochs: E, local epochs per round.
    server_rate: eta_g.

  Returns:
    An `Algorithm`; metrics: loss.
  """
  gradient = jax.value_and_grad(local.cross_entropy(model))
  local_steps = functools.partial(
    local.num_steps, batch_size=batch_size, epochs=epochs
  )

  def init(key):
    params = model.init(key)
    return ScaffoldState(params, optax.tree.zeros_like(params))

  def client(message, control, data, key):
    params, server_control = message
    correction = optax.tree.sub(server_control, control)
    result = local.follow(
      local.corrected(gradient, lambda y: correction),
      params,
      data,
      key,
      optimizer=optax.sgd(rate),
      batch_size=batch_size,
      epochs=epochs,
    )
    change = optax.tree.sub(result.params, params)
    steps = local_steps(data.count, data.budget).astype(jnp.float32)
    # c_k+ - c_k = -c - (y - x) / (K rate); without a step nothing is learnt
    drift = jax.tree.map(
      lambda d, c: jnp.where(
        steps > 0, -c - d / (jnp.maximum(steps, 1) * rate), 0
      ),
      change,
      server_control,
    )
    return Upload(
      (change, drift),
      jnp.float32(1),
      optax.tree.add(control, drift),
      {"loss": result.loss},
    )

  def server(state, reduced):
    (change, drift), arrived = reduced
    return ScaffoldState(
      optax.tree.add_scale(state.params, server_rate, change),
      optax.tree.add_scale(state.control, arrived / num_clients, drift),
    )

  return Algorithm(
    init=init,
    downlink=lambda state, client_id: (state.params, state.control),
    client=client,
    reducer=reduce.mean_and_weight(),
    server=server,
    global_params=lambda state: state.params,
    local_steps=local_steps,
    init_client=lambda key: optax.tree.zeros_like(model.init(key)),
  )
