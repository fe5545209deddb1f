"""One mask for all clients that the server moves now and then (FedTiny, ...).

Down: 32 bits a kept weight and a dense parameter, 32 bits for the number of
the round, and the mask where this client's may be old: the server remembers in
which round it last reached each client, and when each position last changed
(`masks.sparse_wire.MaskNews`).  Once: the first mask, 64 bits where it follows
from a seed, `sparse_wire.mask_nbytes` where it does not.

A client that is dropped may have heard the news; it is told again.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import local, wire
from fedjax_het.core.types import (
  Array,
  ClientData,
  Key,
  Model,
  Params,
  PyTree,
  Reducer,
)
from fedjax_het.masks import tree
from fedjax_het.masks.at_init import Pruning
from fedjax_het.masks.sparse_wire import (
  MaskNews,
  SparseValues,
  layer_sizes,
  sparse_values,
)


class MovingMaskState(NamedTuple):
  """params: zero outside the mask;  mask: bool tree.

  changed: i32[P], the round before which a position last changed.
  seen: i32[N], the round in which each client last received the mask.
  round: i32[], rounds done.
  """

  params: Params
  mask: PyTree
  changed: Array
  seen: Array
  round: Array


class Download(NamedTuple):
  """client: who receives it;  round: i32[];  dense: leaves never pruned."""

  client: wire.Known
  round: Array
  kept: SparseValues
  dense: PyTree
  news: MaskNews


class Answer(NamedTuple):
  """client: who sends it, taken from the `Download`;  body: the message."""

  client: wire.Known
  body: Any


def start(
  model: Model, pruning: Pruning, num_clients: int
) -> Callable[[Key], MovingMaskState]:
  """An `Algorithm.init`: the model, pruned."""

  def init(key):
    params_key, prune_key = jax.random.split(key)
    params = model.init(params_key)
    mask = pruning.mask(prune_key, params)
    return MovingMaskState(
      tree.apply_mask(params, mask),
      mask,
      jnp.zeros(tree.num_maskable(params), jnp.int32),
      jnp.zeros(num_clients, jnp.int32),
      jnp.int32(0),
    )

  return init


def send(state: MovingMaskState, client_id: Array) -> Download:
  """An `Algorithm.downlink`."""
  stale = state.changed > state.seen[client_id]
  sizes = layer_sizes(state.params)
  return Download(
    wire.Known(client_id, setup_bytes=8),
    state.round,
    sparse_values(state.params, state.mask, new=False),
    dense_part(state.params),
    MaskNews(tree.ravel(state.mask), stale, sizes),
  )


def receive(model: Model, message: Download) -> tuple[Params, PyTree]:
  """(params, mask) as the client rebuilds them."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = join(message.kept.values, message.dense, shapes)
  return params, tree.unravel(message.news.kept, tree.full_mask(params))


def moved(
  state: MovingMaskState, params: Params, mask: PyTree, came: Array
) -> MovingMaskState:
  """The state after a round.

  Args:
    state: before.
    params, mask: after.
    came: bool[N], whose uploads counted.
  """
  after = state.round + 1
  differs = tree.ravel(mask) != tree.ravel(state.mask)
  return MovingMaskState(
    tree.apply_mask(params, mask),
    mask,
    jnp.where(differs, after, state.changed),
    jnp.where(came, state.round, state.seen),
    after,
  )


def roll_call(
  num_clients: int, reducer: Reducer, pick: Callable[[Any], PyTree]
) -> Reducer:
  """A reducer of `Answer`s that also says who answered.

  Args:
    num_clients: N.
    reducer: of what `pick` gives.
    pick: an answer's body -> a message; it only rearranges arrays, so that it
      also serves stacked bodies.

  Returns:
    A `Reducer`; `finish` gives (came bool[N], what `reducer` gives).
  """

  def zero(answer):
    return jnp.zeros(num_clients, bool), reducer.zero(pick(answer.body))

  def add(acc, answers, weights):
    came, total = acc
    came = came.at[answers.client.tree].max(weights > 0)
    return came, reducer.add(total, pick(answers.body), weights)

  def merge(a, b):
    return a[0] | b[0], reducer.merge(a[1], b[1])

  return Reducer(zero, add, merge, lambda acc: (acc[0], reducer.finish(acc[1])))


def values_and_holders(body: Any) -> tuple[PyTree, PyTree]:
  """What `reduce.overlap_mean` takes: everybody holds the dense leaves.

  Args:
    body: has `kept`, a `SparseValues`, and `dense`; also stacked.
  """
  everybody = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), body.dense)
  return (body.kept.values, body.dense), (body.kept.kept, everybody)


def masked_loss(loss: local.Loss, mask: PyTree) -> local.Loss:
  """The loss of the network that the mask leaves: no gradient outside it."""
  return lambda p, batch, key: loss(tree.apply_mask(p, mask), batch, key)


def batch_gradient(
  loss: local.Loss,
  params: Params,
  data: ClientData,
  key: Key,
  *,
  batch_size: int,
) -> Params:
  """The gradient of one random batch; zeros for a client without budget."""

  def plain(ignored, batch, key):
    del ignored
    return jax.value_and_grad(loss)(params, batch, key)

  return local.follow(
    plain,
    optax.tree.zeros_like(params),
    data._replace(budget=jnp.minimum(data.budget, 1)),
    key,
    optimizer=optax.sgd(-1.0),
    batch_size=batch_size,
    epochs=1,
  ).params


def adjusting(round: Array, *, every: int, until: int) -> Array:
  """bool[]: whether the mask moves after this round (the first is 0).

  It moves after `every`, 2 `every`, ... rounds, as long as these are fewer than
  `until`.
  """
  done = round + 1
  return (done % every == 0) & (done < until)


def dense_part(params: Params) -> PyTree:
  """The leaves that are never pruned, None in place of the others."""
  return jax.tree.map(
    lambda leaf, layer: None if layer else leaf, params, tree.maskable(params)
  )


def join(flat: Array, dense: PyTree, like: Params) -> Params:
  """Parameters from all maskable weights [P] and the other leaves."""
  rest = iter(jax.tree.leaves(dense))
  filled = jax.tree.map(
    lambda leaf, layer: leaf if layer else next(rest),
    like,
    tree.maskable(like),
  )
  return tree.unravel(flat, filled)
