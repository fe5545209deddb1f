"""APFL: each client uses its own mixture of a personal and the global model.

Down: the global model, 32 P bits.  Up: its change, 32 P bits.  A client keeps
its personal model and its mixture weight, 32 (P + 1) bits.

Departures: the mixture weight moves in every local step (many implementations
move it once a round, for speed), with a rate of its own.
A client is evaluated with the current global model in the mixture; its personal
model starts at the global model of its first round.  Means are weighted by
example counts (the paper: evenly).  A local step computes two gradients.

References:
  Deng, Kamani and Mahdavi: Adaptive Personalized Federated Learning, 2020,
  arXiv:2003.13461, Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _memory
from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.core import local
from fedjax_het.core.types import Algorithm, Array, Model, Params, Upload


class _Mixture(NamedTuple):
  """models: (w, v), the local copy of the global and the personal model.

  alpha: f32[], the personal model's share.
  """

  models: tuple[Params, Params]
  alpha: Array

  def mean(self) -> Params:
    """alpha v + (1 - alpha) w."""
    w, v = self.models
    return optax.tree.add_scale(w, self.alpha, optax.tree.sub(v, w))


def apfl(
  model: Model,
  *,
  alpha: Array | float = 0.5,
  alpha_rate: Array | float = 0.1,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """Clients train w and the mixture alpha v + (1 - alpha) w side by side.

  In every step, with m = alpha v + (1 - alpha) w:
  w follows grad f(w), v follows alpha grad f(m), and alpha follows
  <v - w, grad f(m)>, cut to [0, 1].  Only w is averaged.  With `alpha_rate` 0,
  alpha = 0 is FedAvg for everybody and alpha = 1 purely local training beside
  it.

  Args:
    model: the network.
    alpha: where the personal share starts, in [0, 1].
    alpha_rate: rate of the personal share; 0 keeps it.
    optimizer: of both models, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.

  Returns:
    An `Algorithm`; metrics: loss, of w, and alpha, after the round.
  """
  gradient = jax.value_and_grad(local.cross_entropy(model))

  def follow_both(state, batch, key):
    w, v = state.models
    value, grads = gradient(w, batch, key)
    _, mixed = gradient(state.mean(), batch, key)
    slope = optax.tree.vdot(optax.tree.sub(v, w), mixed)
    own = optax.tree.scale(state.alpha, mixed)
    return value, _Mixture((grads, own), slope)

  def client(params, kept, data, key):
    own, share = _memory.recall(kept, (params, jnp.float32(alpha)))
    result = local.follow(
      follow_both,
      _Mixture((params, own), share),
      data,
      key,
      optimizer=_projected(optimizer, alpha_rate),
      batch_size=batch_size,
      epochs=epochs,
    )
    (w, v), share = result.params
    return Upload(
      optax.tree.sub(w, params),
      data.count.astype(jnp.float32),
      _memory.remember(kept, (v, share), data),
      {"loss": result.loss, "alpha": share},
    )

  def init_client(key):
    params = jax.eval_shape(model.init, key)
    return _memory.nothing((params, jnp.float32(alpha)))

  def predict(state, kept, client_id):
    del client_id
    own, share = _memory.recall(kept, (state.params, jnp.float32(alpha)))
    return _Mixture((state.params, own), share).mean()

  return fed_avg(
    model, optimizer=optimizer, batch_size=batch_size, epochs=epochs
  )._replace(
    client=client,
    init_client=init_client,
    predict=predict,
    step_gradients=2.0,
  )


def _projected(
  optimizer: optax.GradientTransformation, alpha_rate: Array | float
) -> optax.GradientTransformation:
  """`optimizer` on the models, projected gradient descent on alpha."""

  def update(grads, state, params):
    models, state = optimizer.update(grads.models, state, params.models)
    alpha = jnp.clip(params.alpha - alpha_rate * grads.alpha, 0.0, 1.0)
    return _Mixture(models, alpha - params.alpha), state

  return optax.GradientTransformation(
    lambda params: optimizer.init(params.models), update
  )
