"""Rounds in which clients train adapters; what travels is up to the method.

The methods of this family differ in three things: the masks that the server
chooses, whether clients and server keep to them, and how vectors travel.  All
else is here: a client starts from what it received, trains the vector over the
frozen base, and the server's optimiser descends on minus the mean change.

Once: the frozen base, to every client (`wire.Known`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms._lora_messages import Down, Up
from fedjax_het.algorithms._lora_parts import Layout
from fedjax_het.core import local, wire
from fedjax_het.core.types import (
  Algorithm,
  Array,
  Key,
  Params,
  Upload,
)
from fedjax_het.models.lora import Adapted

_STREAM = 0x10_7A  # the masks' key, apart from those of the adapters


class LoraState(NamedTuple):
  """frozen: the base;  vector: f32[V], what is trained (`_lora_parts`).

  opt_state: of the server's optimiser.
  masks: bool[T, V], what the clients of each tier receive in the coming round.
  key: of ties in the masks, never changed;  round: i32[], rounds done.
  """

  frozen: Params
  vector: Array
  opt_state: optax.OptState
  masks: Array
  key: Key
  round: Array


class Local(NamedTuple):
  """What all methods here share.

  optimizer, batch_size, epochs: of the clients, made afresh every round.
  server_optimizer: of the server.
  loss: (parameters of the joined model, batch, key) -> f32[].
  by_examples: weights clients by their examples, not equally.
  """

  optimizer: optax.GradientTransformation
  batch_size: int
  epochs: int
  server_optimizer: optax.GradientTransformation
  loss: local.Loss
  by_examples: bool


def defaults(
  adapted: Adapted,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int,
  server_optimizer: optax.GradientTransformation | None,
  loss: local.Loss | None,
  by_examples: bool,
) -> Local:
  """`Local` with plain averaging and cross-entropy where nothing is given."""
  return Local(
    optimizer,
    batch_size,
    epochs,
    server_optimizer or optax.sgd(1.0),
    loss or local.cross_entropy(adapted.model),
    by_examples,
  )


def lora_rounds(
  adapted: Adapted,
  layout: Layout,
  shared: Local,
  *,
  tiers: int,
  choose: Callable[[Array, Array, Key, Array], Array],
  down: Down,
  up: Up,
  frozen_outside: bool,
  masked_model: bool,
  setup_bytes: int = 0,
) -> Algorithm:
  """Federated training of adapters.

  Args:
    adapted: the model, frozen but for its adapters.
    layout: of the vector.
    shared: local training and the server's optimiser.
    tiers: T; client k is of tier k % T.
    choose: (vector, round i32[], key, masks so far bool[T, V]) -> bool[T, V],
      the masks of the round; all of them True so far before the first.
    down, up: how vectors travel.
    frozen_outside: clients and server move nothing outside the masks.
    masked_model: the global model is what the client that receives most is
      sent next, zero outside its mask; else the server's own vector.
    setup_bytes: what a client receives once beside the base.

  Returns:
    An `Algorithm`; metrics: loss.
  """

  def init(key):
    frozen, trained = adapted.init(key)
    vector = layout.ravel(trained)
    key = jax.random.fold_in(key, _STREAM)
    everything = jnp.ones((tiers, vector.size), bool)
    return LoraState(
      frozen,
      vector,
      shared.server_optimizer.init(vector),
      choose(vector, jnp.int32(0), jax.random.fold_in(key, 0), everything),
      key,
      jnp.int32(0),
    )

  def send(state, client_id):
    tier = client_id % tiers
    return (
      wire.Known(state.frozen, setup_bytes=layout.base_bytes + setup_bytes),
      wire.Known(tier, setup_bytes=0),
      down.pack(state.vector, state.masks[tier], tier),
    )

  def client(message, state, data, key):
    del state
    base, tier, packed = message
    start, mask = down.open(packed)

    def gradient(vector, batch, key):
      def objective(vector):
        params = adapted.join(base.tree, layout.unravel(vector))
        return shared.loss(params, batch, key)

      value, grads = jax.value_and_grad(objective)(vector)
      return value, jnp.where(mask, grads, 0.0) if frozen_outside else grads

    result = local.follow(
      gradient,
      start,
      data,
      key,
      optimizer=shared.optimizer,
      batch_size=shared.batch_size,
      epochs=shared.epochs,
    )
    ties = jax.random.fold_in(key, _STREAM)
    return Upload(
      up.pack(result.params - start, mask, tier.tree, ties),
      data.count.astype(jnp.float32) if shared.by_examples else jnp.float32(1),
      (),
      {"loss": result.loss},
      result.ok,  # a NaN that is not among the top k does not travel
    )

  def server(state, reduced):
    vector, opt_state = local.descend(
      shared.server_optimizer, -up.read(reduced), state.opt_state, state.vector
    )
    if frozen_outside:  # whatever moments or weight decay would move there
      held = jnp.any(state.masks, axis=0)
      vector = jnp.where(held, vector, state.vector)
    done = state.round + 1
    masks = choose(
      vector, done, jax.random.fold_in(state.key, done), state.masks
    )
    return LoraState(state.frozen, vector, opt_state, masks, state.key, done)

  def global_params(state):
    vector = state.vector
    if masked_model:
      vector = jnp.where(jnp.any(state.masks, axis=0), vector, 0.0)
    return adapted.merge(state.frozen, layout.unravel(vector))

  return Algorithm(
    init=init,
    downlink=send,
    client=client,
    reducer=up.reducer,
    server=server,
    global_params=global_params,
    local_steps=functools.partial(
      local.num_steps, batch_size=shared.batch_size, epochs=shared.epochs
    ),
  )
