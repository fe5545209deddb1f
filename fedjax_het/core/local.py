"""Local training: what a client does between receiving and sending.

Any optax optimiser, any loss over (parameters, batch, key), any number of
steps known only at run time: under `vmap` the loop runs until the slowest
client *of that chunk* is done, and finished clients keep their result.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import shuffle
from fedjax_het.core.types import (
  NO_BUDGET,
  Array,
  ClientData,
  Key,
  Model,
  Params,
)


class Batch(NamedTuple):
  """x f32[B, ...], y i32[B], mask f32[B]: 1 where real, 0 for padding."""

  x: Array
  y: Array
  mask: Array


class LocalResult(NamedTuple):
  """params after training; loss f32[], step mean; ok bool[], all finite.

  opt_state: the optimiser's, for clients that keep their moments.
  """

  params: Params
  loss: Array
  ok: Array
  opt_state: optax.OptState


Loss = Callable[[Params, Batch, Key], Array]
# (params, batch, key) -> (the loss to report, a direction like params)
Gradient = Callable[[Params, Batch, Key], tuple[Array, Params]]


def num_steps(
  count: Array, budget: Array, *, batch_size: int, epochs: int
) -> Array:
  """Steps of a client with n examples: min(E ceil(n/B), budget), i32[]."""
  return jnp.minimum(epochs * _steps_per_epoch(count, batch_size), budget)


def train(
  loss: Loss,
  params: Params,
  data: ClientData,
  key: Key,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int,
  opt_state: optax.OptState | None = None,
) -> LocalResult:
  """Descends on a loss: `follow` with its gradient.

  Args:
    loss: (params, batch, key) -> f32[], the mean loss over the real examples.

  The other arguments and the result are those of `follow`.
  """
  return follow(
    jax.value_and_grad(loss),
    params,
    data,
    key,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    opt_state=opt_state,
  )


def follow(
  gradient: Gradient,
  params: Params,
  data: ClientData,
  key: Key,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int,
  opt_state: optax.OptState | None = None,
) -> LocalResult:
  """Runs min(E ceil(n/B), budget) optimiser steps on one client's examples.

  Every epoch visits every example once in a new random order; the last batch
  of an epoch is partly padding when B does not divide n.

  Args:
    gradient: (params, batch, key) -> (loss f32[], direction like params); any
      direction, e.g. a gradient with a correction.
    params: where training starts, any pytree of float arrays.
    data: the client's examples.
    key: typed PRNG key of this client in this round.
    optimizer: turns directions into steps.
    batch_size: B.
    epochs: E, the most passes over the data.
    opt_state: the moments to go on with; None makes them afresh.

  Returns:
    A `LocalResult`; with zero steps, `params` unchanged and loss 0.
  """
  steps = num_steps(
    data.count, data.budget, batch_size=batch_size, epochs=epochs
  )
  order_key, loss_key = jax.random.split(key)

  def step(carry):
    t, params, opt_state, total = carry
    batch = _batch(order_key, data, t, batch_size)
    value, grads = gradient(params, batch, jax.random.fold_in(loss_key, t))
    params, opt_state = descend(optimizer, grads, opt_state, params)
    return t + 1, params, opt_state, total + value

  if opt_state is None:
    opt_state = optimizer.init(params)
  zero = jnp.int32(0), params, opt_state, jnp.float32(0)
  _, params, opt_state, total = jax.lax.while_loop(
    lambda carry: carry[0] < steps, step, zero
  )
  mean = total / jnp.maximum(steps, 1).astype(jnp.float32)
  return LocalResult(params, mean, all_finite((params, mean)), opt_state)


def descend(
  optimizer: optax.GradientTransformation,
  grads: Params,
  opt_state: optax.OptState,
  params: Params,
) -> tuple[Params, optax.OptState]:
  """One optimiser step: (params, opt_state) after `grads`."""
  # optax 0.2 mixes float and int32 in its bias corrections.
  with jax.numpy_dtype_promotion("standard"):
    updates, opt_state = optimizer.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def corrected(
  gradient: Gradient, correction: Callable[[Params], Params]
) -> Gradient:
  """`gradient` plus correction(params) in every step; the loss stays as it is.

  With `pull` this is the gradient of a loss with a proximal term.
  """

  def sum_of_both(params, batch, key):
    value, grads = gradient(params, batch, key)
    return value, optax.tree.add(grads, correction(params))

  return sum_of_both


def pull(center: Params, strength: Array | float) -> Callable[[Params], Params]:
  """The gradient of strength / 2 ||w - center||^2, as a function of w."""
  return lambda params: optax.tree.scale(
    strength, optax.tree.sub(params, center)
  )


def mean_gradient(
  loss: Loss, params: Params, data: ClientData, key: Key, *, batch_size: int
) -> Params:
  """The gradient at `params` of the mean loss over all the client's examples.

  A batch of b real examples adds b / n times its mean gradient, in one pass of
  `follow`.  The budget of optimiser steps does not cut this pass; a client
  without any budget gives zeros.
  """
  count = jnp.maximum(data.count, 1).astype(jnp.float32)

  def share(total, batch, key):
    del total
    value, grads = jax.value_and_grad(loss)(params, batch, key)
    return value, optax.tree.scale(jnp.sum(batch.mask) / count, grads)

  return follow(
    share,
    optax.tree.zeros_like(params),
    data._replace(budget=jnp.where(data.budget > 0, NO_BUDGET, 0)),
    key,
    optimizer=optax.sgd(-1.0),
    batch_size=batch_size,
    epochs=1,
  ).params


def cross_entropy(model: Model) -> Loss:
  """Mean softmax cross-entropy of `model` over the real examples of a batch."""

  def loss(params, batch, key):
    del key
    each = optax.softmax_cross_entropy_with_integer_labels(
      model.apply(params, batch.x), batch.y
    )
    return jnp.sum(each * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

  return loss


def next_tokens(model: Model) -> Loss:
  """Mean cross-entropy of what comes next, at every place of a window.

  For x i32[B, T] and y i32[B], the token behind it, the targets are x from its
  second token on, and y.

  Args:
    model: apply: (params, x i32[B, T]) -> logits f32[B, T, K].
  """

  def loss(params, batch, key):
    del key
    target = jnp.concatenate([batch.x[:, 1:], batch.y[:, None]], axis=1)
    each = optax.softmax_cross_entropy_with_integer_labels(
      model.apply(params, batch.x), target
    ).mean(axis=1)
    return jnp.sum(each * batch.mask) / jnp.maximum(jnp.sum(batch.mask), 1)

  return loss


def all_finite(tree: Params) -> Array:
  """bool[]: no float leaf of `tree` holds a NaN or an Inf."""
  finite = [
    jnp.isfinite(leaf).all()
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
  ]
  return jnp.stack(finite).all() if finite else jnp.bool_(True)


def _steps_per_epoch(count: Array, batch_size: int) -> Array:
  return (count + (batch_size - 1)) // batch_size


def _batch(key: Key, data: ClientData, step: Array, batch_size: int) -> Batch:
  """Batch number `step`, counted through all epochs."""
  per_epoch = jnp.maximum(_steps_per_epoch(data.count, batch_size), 1)
  epoch, start = step // per_epoch, (step % per_epoch) * batch_size
  position = start + jnp.arange(batch_size)
  real = position < data.count
  chosen = shuffle.permute(
    jax.random.fold_in(key, epoch),
    jnp.where(real, position, 0),
    jnp.maximum(data.count, 1),
  )
  return Batch(*data.take(chosen), real.astype(jnp.float32))
