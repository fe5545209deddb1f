"""PruneFL: the mask takes what lowers the loss most for the time it costs.

Now and then clients send the squares of all their gradients; the server keeps
the larger weights of each layer and fills up with those whose squared gradient
pays for their time.  How many it keeps in all follows from that.

Up: 32 bits a kept weight and a dense parameter; in an adjustment round also
32 P bits, a square for every weight, pruned or not.  Down: see `_moving_mask`.
A device holds P squares while it looks, not O(d P).

Departures: the first mask is `pruning`'s (in the paper one client trains and
prunes it alone); costs are given, not measured; squares are the mean over one
more pass over a client's data at the end of an adjustment round, which
`local_steps` leaves out (in the paper they add up while it trains).

References:
  Jiang et al.: Model Pruning Enables Efficient Federated Learning on Edge
  Devices, IEEE TNNLS 2022, arXiv:1909.12326.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _moving_mask as moving
from fedjax_het.algorithms._fed_tiny import check_schedule
from fedjax_het.core import local, reduce
from fedjax_het.core.errors import unknown
from fedjax_het.core.types import (
  Algorithm,
  Array,
  Model,
  Params,
  PyTree,
  Upload,
)
from fedjax_het.masks import prune_grow, tree
from fedjax_het.masks.at_init import Pruning
from fedjax_het.masks.sparse_wire import SparseValues, sparse_values


class _Body(NamedTuple):
  """change: of the kept weights;  dense: of the others;  squares: of all."""

  change: SparseValues
  dense: PyTree
  squares: SparseValues


def prune_fl(
  model: Model,
  pruning: Pruning,
  *,
  num_clients: int,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  adjust_every: int = 50,
  adjust_until: int = 2**31 - 1,
  share: float = 0.3,
  costs: Mapping[str, float] | None = None,
  fixed_cost: float = 0.0,
) -> Algorithm:
  """FedAvg on a mask whose size adapts.

  After rounds R, 2 R, ... < T the largest 1 - share of the kept weights of each
  layer stay.  All others, in the order of g_j^2 / t_j, join the set A while

    g_j^2 / t_j > sum_{i in A} g_i^2 / (c + sum_{i in A} t_i),

  that is, as long as the loss falls faster with them.  Who joins anew starts at
  0.

  Args:
    model: the network.
    pruning: chooses the first mask.
    num_clients: N of the data it runs on.
    optimizer: the clients' optimiser, made afresh every round; it must leave a
      zero weight with zero gradient at zero, as optax's all do.
    batch_size: B.
    epochs: E, local epochs per round.
    adjust_every: R;  adjust_until: T.
    share: of a layer's kept weights that have to prove themselves, in [0, 1].
    costs: t, layer name -> time of one of its weights; default 1 each.
    fixed_cost: c, time of a round that no weight changes.

  Returns:
    An `Algorithm`; metrics: loss, density (of the mask received).

  Raises:
    UserError: a wrong share, schedule or layer.
  """
  check_schedule(adjust_every, adjust_until, share)
  time = _time_of_each(model, costs)
  cross_entropy = local.cross_entropy(model)
  train = functools.partial(
    local.train, optimizer=optimizer, batch_size=batch_size, epochs=epochs
  )

  def moves(round):
    return moving.adjusting(round, every=adjust_every, until=adjust_until)

  def client(message, state, data, key):
    del state
    start, mask = moving.receive(model, message)
    result = train(moving.masked_loss(cross_entropy, mask), start, data, key)
    params = tree.apply_mask(result.params, mask)
    now = moves(message.round)
    squares = jax.lax.cond(
      now,
      lambda: _mean_squares(
        cross_entropy,
        params,
        data,
        jax.random.fold_in(key, 1),
        batch_size=batch_size,
      ),
      lambda: optax.tree.zeros_like(params),
    )
    everything = jax.tree.map(lambda m: jnp.broadcast_to(now, m.shape), mask)
    change = optax.tree.sub(params, start)
    body = _Body(
      sparse_values(change, mask, new=False),
      moving.dense_part(change),
      sparse_values(squares, everything, new=False),
    )
    return Upload(
      moving.Answer(message.client, body),
      data.count.astype(jnp.float32),
      (),
      {"loss": result.loss, "density": tree.density(mask)},
    )

  def server(state, reduced):
    came, (change, dense, squares) = reduced
    params = optax.tree.add(
      state.params, moving.join(change, dense, state.params)
    )
    mask = jax.lax.cond(
      moves(state.round),
      lambda: _adapt(params, state.mask, squares, time, share, fixed_cost),
      lambda: state.mask,
    )
    return moving.moved(state, params, mask, came)

  return Algorithm(
    init=moving.start(model, pruning, num_clients),
    downlink=moving.send,
    client=client,
    reducer=moving.roll_call(
      num_clients,
      reduce.weighted_mean(),
      lambda body: (body.change.values, body.dense, body.squares.values),
    ),
    server=server,
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
  )


def _adapt(
  params: Params,
  mask: PyTree,
  squares: Array,
  time: tuple[float, ...],
  share: float,
  fixed_cost: float,
) -> PyTree:
  """The mask after an adjustment; squares f32[P]."""
  kept = prune_grow.kept_per_layer(mask)
  stays = kept - jnp.floor(share * kept.astype(jnp.float32)).astype(jnp.int32)
  sure = tree.ravel(prune_grow.by_magnitude(params, stays, among=mask))
  shapes = tree.layers(params).values()
  cost = jnp.concatenate(
    [
      jnp.full(x.size, t, jnp.float32)
      for x, t in zip(shapes, time, strict=True)
    ]
  )
  rate = jnp.where(sure, -1.0, squares / cost)  # the sure ones come last
  order = jnp.argsort(-rate, stable=True)
  gain = jnp.where(sure, 0.0, squares)[order]
  spent = jnp.where(sure, 0.0, cost)[order]
  so_far = jnp.sum(jnp.where(sure, squares, 0.0)) + jnp.cumsum(gain) - gain
  taken = (
    fixed_cost + jnp.sum(jnp.where(sure, cost, 0.0)) + jnp.cumsum(spent) - spent
  )
  worth = jnp.where(taken > 0, so_far / jnp.maximum(taken, 1e-30), -1.0)
  pays = (rate[order] > worth) & ~sure[order]
  joins = jnp.cumprod(pays.astype(jnp.int32)).astype(bool)  # until one does not
  flat = sure.at[order].max(joins)
  return tree.unravel(flat, tree.full_mask(params))


def _mean_squares(loss, params, data, key, *, batch_size) -> Params:
  """The mean over a pass of the squares of the batches' gradients."""
  steps = local.num_steps(
    data.count, data.budget, batch_size=batch_size, epochs=1
  )

  def squared(ignored, batch, key):
    del ignored
    value, grads = jax.value_and_grad(loss)(params, batch, key)
    return value, jax.tree.map(jnp.square, grads)

  total = local.follow(
    squared,
    optax.tree.zeros_like(params),
    data,
    key,
    optimizer=optax.sgd(-1.0),
    batch_size=batch_size,
    epochs=1,
  ).params
  return optax.tree.scale(1 / jnp.maximum(steps, 1).astype(jnp.float32), total)


def _time_of_each(
  model: Model, costs: Mapping[str, float] | None
) -> tuple[float, ...]:
  """t of each layer, in flat order."""
  names = tree.layers(jax.eval_shape(model.init, jax.random.key(0)))
  for name in costs or ():
    if name not in names:
      raise unknown("layer", name, names)
  return tuple((costs or {}).get(name, 1.0) for name in names)
