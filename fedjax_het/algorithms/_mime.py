"""Mime and MimeLite: clients use the server's moments, and never change them.

Down: the model and the optimiser's state (32 P bits for momentum, 64 P + 32 for
Adam); Mime also the mean gradient, 32 P bits.  Up: the change of the model and
the full-batch gradient at the received model, 64 P bits.

Departures: the paper's Mime averages the gradients of a round's clients before
these clients train, a second exchange within the round.  Here clients get the
mean gradient of the *last* round's clients at the last round's model (zero in
the first round); MimeLite needs none and is exact.  Means are weighted by
example counts.  A client's pass for the full gradient is no optimiser step: it
does not count against the budget of steps.

References:
  Karimireddy et al.: Mime: Mimicking Centralized Stochastic Algorithms in
  Federated Learning, 2020, arXiv:2008.03606, Algorithm 1.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import local, reduce
from fedjax_het.core.types import Algorithm, Model, Params, PyTree, Upload


class MimeState(NamedTuple):
  """params: x;  opt_state: s, the moments;  gradient: c, `()` for MimeLite."""

  params: Params
  opt_state: optax.OptState
  gradient: PyTree


def mime(
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  lite: bool = False,
) -> Algorithm:
  """Clients step with frozen moments s along g(y) - g(x) + c.

  g(y) and g(x) are the gradients of one batch at the client's and at the
  received model; MimeLite steps along g(y).  The server averages the models and
  feeds the mean full-batch gradient at x to the moments.  MimeLite with an
  optimiser without moments is FedAvg.

  Args:
    model: the network.
    optimizer: the optimiser whose moments the server keeps, e.g.
      `optax.sgd(0.1, momentum=0.9)` or `optax.adam(0.01)`.
    batch_size: B.
    epochs: E, local epochs per round.
    lite: MimeLite.

  Returns:
    An `Algorithm`; metrics: loss.
  """
  cross_entropy = local.cross_entropy(model)
  plain = jax.value_and_grad(cross_entropy)

  def init(key):
    params = model.init(key)
    zeros = () if lite else optax.tree.zeros_like(params)
    return MimeState(params, optimizer.init(params), zeros)

  def client(message, state, data, key):
    del state
    params, opt_state, gradient = message

    def with_variance_reduced(y, batch, key):
      value, grads = plain(y, batch, key)
      _, at_start = plain(params, batch, key)
      return value, optax.tree.add(optax.tree.sub(grads, at_start), gradient)

    train_key, pass_key = jax.random.split(key)
    result = local.follow(
      plain if lite else with_variance_reduced,
      params,
      data,
      train_key,
      optimizer=_frozen(optimizer, opt_state),
      batch_size=batch_size,
      epochs=epochs,
    )
    full = local.mean_gradient(
      cross_entropy, params, data, pass_key, batch_size=batch_size
    )
    change = optax.tree.sub(result.params, params)
    weight = data.count.astype(jnp.float32)
    return Upload((change, full), weight, (), {"loss": result.loss})

  def server(state, reduced):
    change, full = reduced
    _, opt_state = local.descend(optimizer, full, state.opt_state, state.params)
    return MimeState(
      optax.tree.add(state.params, change), opt_state, () if lite else full
    )

  return Algorithm(
    init=init,
    downlink=lambda state, client_id: tuple(state),
    client=client,
    reducer=reduce.weighted_mean(),
    server=server,
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
    # one pass more for the full gradient, and Mime's correction of every step
    step_gradients=(1.0 if lite else 2.0) + 1 / epochs,
  )


def _frozen(
  optimizer: optax.GradientTransformation, opt_state: optax.OptState
) -> optax.GradientTransformation:
  """`optimizer` that starts every step from the same moments."""

  def update(grads, state, params=None):
    return optimizer.update(grads, state, params)[0], state

  return optax.GradientTransformation(lambda params: opt_state, update)
