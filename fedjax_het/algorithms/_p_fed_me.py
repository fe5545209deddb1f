"""pFedMe: the global model minimises the clients' Moreau envelopes.

Down: the global model, 32 P bits.  Up: the local model's change, 32 P bits.
Clients keep nothing: the personal model is a function of the global one.

Departures: the inner solver starts each batch at the local model w, not at the
last personal model.  A client is evaluated with the personal model of the
current global model (`tune_epochs` of the inner descent on its own data), not
with the one left over from its last round, so that clients that never trained
have one too.  Means are weighted by example counts, as in the released code
(the paper: evenly).

References:
  Dinh, Tran and Nguyen: Personalized Federated Learning with Moreau Envelopes,
  NeurIPS 2020, arXiv:2006.08848, Algorithm 1.
"""

import jax
import optax

from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, Model


def p_fed_me(
  model: Model,
  *,
  lam: Array | float,
  inner_rate: Array | float,
  inner_steps: int = 5,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  server_rate: Array | float = 1.0,
  tune_epochs: int = 1,
) -> Algorithm:
  """Local steps follow lam (w - theta(w)).

  theta(w) = argmin_theta f_k(theta) + lam / 2 ||theta - w||^2, approximately:
  `inner_steps` gradient steps on one batch, from w.  The server sets
  w += server_rate mean(w_k - w).  With one inner step this is FedAvg whose
  clients' rate is multiplied by lam x inner_rate.

  Args:
    model: the network.
    lam: strength of the pull between the local and the personal model.
    inner_rate: rate of the inner gradient descent, below 2 / lam.
    inner_steps: K, static.
    optimizer: of the local model w; the paper's eta is its rate.
    batch_size: B.
    epochs: E, local epochs per round.
    server_rate: beta.
    tune_epochs: epochs of inner descent before a client is evaluated.

  Returns:
    An `Algorithm`; metrics: loss, of the local model.

  Raises:
    UserError: no inner step.
  """
  if inner_steps < 1:
    raise UserError(f"inner_steps {inner_steps}: give at least 1")
  plain = jax.value_and_grad(local.cross_entropy(model))

  def envelope(w, batch, key):
    descend = local.corrected(plain, local.pull(w, lam))

    def step(theta, _):
      value, grads = descend(theta, batch, key)
      return optax.tree.add_scale(theta, -inner_rate, grads), value

    theta, values = jax.lax.scan(step, w, length=inner_steps)
    # the gradient of the envelope at w, exact if theta is
    return values[0], local.pull(theta, lam)(w)

  def adapt(params, data, key):
    return local.follow(
      local.corrected(plain, local.pull(params, lam)),
      params,
      data,
      key,
      optimizer=optax.sgd(inner_rate),
      batch_size=batch_size,
      epochs=tune_epochs,
    ).params

  return fed_avg(
    model,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    server_optimizer=optax.sgd(server_rate),
    gradient=lambda received: envelope,
  )._replace(adapt=adapt, step_gradients=inner_steps)
