"""FedPM: clients train the probability of each frozen weight's mask.

The weights are random and never change.  The server holds a probability per
weight; a client starts from its logit, trains the score through sampled masks,
and uploads one sampled bit per weight.

Up: P bits (one Bernoulli sample per weight).  Down: 32 P bits (probabilities).
Once: the 64-bit seed of the weights.  The released code keeps each client's
Adam moments while its scores are overwritten; here they are made afresh, as
the paper's algorithm says.  Every client has one vote whatever its data.

References:
  Isik et al.: Sparse Random Networks for Communication-Efficient Federated
  Learning, ICLR 2023, arXiv:2209.15328, Algorithm 1 and 2.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import local, wire
from fedjax_het.core.types import Algorithm, Array, Key, Model, Params, Upload
from fedjax_het.masks import sign, tree, votes


class FedPMState(NamedTuple):
  """weights: frozen;  alpha, beta: f32[P], the Beta posterior of each bit.

  round: i32[], for the reset of the posterior;  key: draws the mask that the
  global model is evaluated with.
  """

  weights: Params
  alpha: Array
  beta: Array
  round: Array
  key: Key


def fed_pm(
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 3,
  prior: float = 1.0,
  reset_every: int = 1,
) -> Algorithm:
  """Trains a stochastic {0, 1} mask on frozen random weights.

  The server's probability is the mode of the Beta posterior,
  theta = (alpha - 1) / (alpha + beta - 2), with alpha += sum_k m_k and
  beta += K - sum_k m_k; every `reset_every` rounds both start again at
  `prior`.  With the defaults theta is the plain mean of the masks.

  Args:
    model: the network; biases stay as they are initialised.
    optimizer: of the scores, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.
    prior: lambda_0 >= 1, both parameters of the Beta prior.
    reset_every: rounds between resets; the paper takes 1 / participation rate.

  Returns:
    An `Algorithm`; metrics: loss, density (share of ones sent).
  """
  cross_entropy = local.cross_entropy(model)

  def masked(weights, mask):
    return tree.unravel(tree.ravel(weights) * mask, weights)

  def probability(state):
    total = state.alpha + state.beta - 2
    known = total > 0
    mode = (state.alpha - 1) / jnp.where(known, total, 1.0)
    return jnp.where(known, mode, 0.5)

  def init(key):
    params_key, eval_key = jax.random.split(key)
    weights = model.init(params_key)
    beta = jnp.full(tree.num_maskable(weights), jnp.float32(prior))
    return FedPMState(weights, beta, beta, jnp.int32(0), eval_key)

  def send(state, client_id):
    del client_id
    return wire.Known(state.weights, setup_bytes=8), probability(state)

  def client(message, state, data, key):
    del state
    seed, p = message
    weights = seed.tree
    train_key, send_key = jax.random.split(key)

    def loss(scores, batch, key):
      mask_key, key = jax.random.split(key)
      mask = sign.bernoulli_ste(mask_key, scores)
      return cross_entropy(masked(weights, mask), batch, key)

    result = local.train(
      loss,
      sign.logit_clipped(p),
      data,
      train_key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    bits = sign.bernoulli_ste(send_key, result.params)
    return Upload(
      votes.pack(2 * bits - 1),
      jnp.float32(1),
      (),
      {"loss": result.loss, "density": jnp.mean(bits)},
      result.ok,
    )

  def server(state, reduced):
    mean, voters = reduced
    ones = (mean + 1) / 2 * voters
    fresh = state.round % reset_every == 0
    alpha = jnp.where(fresh, prior, state.alpha) + ones
    beta = jnp.where(fresh, prior, state.beta) + voters - ones
    return state._replace(alpha=alpha, beta=beta, round=state.round + 1)

  def global_params(state):
    draw = jax.random.fold_in(state.key, state.round)
    mask = jax.random.bernoulli(draw, probability(state))
    return masked(state.weights, mask.astype(jnp.float32))

  return Algorithm(
    init=init,
    downlink=send,
    client=client,
    reducer=votes.sign_mean(),
    server=server,
    global_params=global_params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
  )
