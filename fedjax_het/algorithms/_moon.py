"""MOON: a contrastive loss pulls features towards those of the global model.

Down: the global model, 32 P bits.  Up: its change, 32 P bits.  A client keeps
its last local model, 32 P bits.

The paper's features are the output of a projection head before the classifier.
A `Model` has no such output, so they come as a second function of the same
parameters, `features(params, x)`; XLA computes what it shares with the logits
once.  Without it the logits are the features: no projection head, but any model
works.  A client's first round has no contrastive term (there is no last local
model), as in the released code.

References:
  Li et al.: Model-Contrastive Federated Learning, CVPR 2021, arXiv:2103.16257,
  Algorithm 1.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _memory
from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.core import local
from fedjax_het.core.types import Algorithm, Array, Model, Params, Upload


def moon(
  model: Model,
  *,
  mu: Array | float,
  temperature: Array | float = 0.5,
  features: Callable[[Params, Array], Array] | None = None,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """Clients descend on cross-entropy + mu contrast.

  With z, z_glob, z_prev the features of an example under the trained, the
  received and the client's last local model, and s = cos(z, .) / temperature,
  contrast = -log(exp s_glob / (exp s_glob + exp s_prev)).  mu = 0 is FedAvg.

  Args:
    model: the network.
    mu: weight of the contrastive loss; the paper tries 0.1 to 10.
    temperature: of the softmax over the two similarities.
    features: (params, x f32[B, ...]) -> f32[B, ...]; default: the logits.  Of a
      linen module with a method `features`:
      `lambda p, x: module.apply({"params": p}, x, method="features")`.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.

  Returns:
    An `Algorithm`; metrics: loss, both terms.
  """
  cross_entropy = local.cross_entropy(model)
  features = features or model.apply

  def contrast(params, received, previous, batch):
    z = features(params, batch.x)
    to_global = _cosine(z, features(received, batch.x))
    to_previous = _cosine(z, features(previous, batch.x))
    each = jax.nn.softplus((to_previous - to_global) / temperature)
    return jnp.sum(each * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

  def client(params, kept, data, key):
    previous = _memory.recall(kept, params)
    strength = jnp.where(kept.seen, mu, 0.0)

    def loss(own, batch, key):
      return cross_entropy(own, batch, key) + strength * contrast(
        own, params, previous, batch
      )

    result = local.train(
      loss,
      params,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    return Upload(
      optax.tree.sub(result.params, params),
      data.count.astype(jnp.float32),
      _memory.remember(kept, result.params, data),
      {"loss": result.loss},
    )

  return fed_avg(
    model, optimizer=optimizer, batch_size=batch_size, epochs=epochs
  )._replace(
    client=client,
    init_client=lambda key: _memory.nothing(jax.eval_shape(model.init, key)),
    step_gradients=5 / 3,  # two forward passes more, of frozen models
  )


def _cosine(a: Array, b: Array) -> Array:
  """Cosine of the angle between the rows of a and b [B, ...], f32[B]."""
  a, b = (z.reshape(z.shape[0], -1) for z in (a, b))
  square = functools.partial(jnp.sum, axis=1)
  # the small number keeps the gradient finite where every feature is zero
  norms = (square(a * a) + 1e-12) * (square(b * b) + 1e-12)
  return square(a * b) * jax.lax.rsqrt(norms)
