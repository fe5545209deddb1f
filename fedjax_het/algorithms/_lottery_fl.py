"""LotteryFL: every client looks for its own winning ticket.

A client that is good enough with its part of the global model prunes that part
further by magnitude, goes back to the initial weights there, and trains.  The
server averages each weight over the clients that keep it.

Down: the global model, 32 bits a parameter (the server here remembers nobody's
mask; the paper counts the client's part only).  Up: 32 bits a kept weight and a
dense parameter, the positions, in each layer the shorter of P_l bits and
n_l ceil(log2 P_l) bits, and 32 bits for their number.  Once: the 64-bit seed of
the initial weights.  A client keeps its mask, P bits.

Departures: a client judges itself on its own training data, the contract shows
it no others; it is evaluated with its part of the present global model, not
with the best that it ever had.

References:
  Li et al.: LotteryFL: Empower Edge Intelligence with Personalized and
  Communication-Efficient Federated Learning, SEC 2021, arXiv:2008.03371.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _moving_mask as moving
from fedjax_het.core import local, reduce, wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Model, Params, PyTree, Upload
from fedjax_het.masks import prune_grow, tree
from fedjax_het.masks.sparse_wire import (
  SparseValues,
  layer_sizes,
  sparse_values,
)


class LotteryFLState(NamedTuple):
  """params: the global model, dense;  start: the initial weights."""

  params: Params
  start: Params


class _Message(NamedTuple):
  """kept: the client's weights where its mask is;  dense: the others."""

  kept: SparseValues
  dense: PyTree


def lottery_fl(
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  density: float = 0.1,
  share: float = 0.2,
  accuracy: float = 0.2,
) -> Algorithm:
  """Personal masks by iterative magnitude pruning with rewinding.

  Args:
    model: the network.
    optimizer: the clients' optimiser, made afresh every round; it must leave a
      zero weight with zero gradient at zero, as optax's all do.
    batch_size: B.
    epochs: E, local epochs per round.
    density: of each layer, at which pruning ends, in (0, 1].
    share: of the kept weights of each layer that go at a time, in [0, 1].
    accuracy: on its own data, above which a client prunes.

  Returns:
    An `Algorithm`; metrics: loss, density (of the client's mask).  Its global
    model is the dense one that nobody uses: judge by `client_accuracy`.

  Raises:
    UserError: a density or a share that is none.
  """
  if not (0 < density <= 1 and 0 <= share <= 1):
    raise UserError(
      f"density {density:g}, share {share:g}: give a density in (0, 1] and a "
      "share in [0, 1]"
    )
  cross_entropy = local.cross_entropy(model)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  least = jnp.asarray(
    [max(1, round(density * size)) for size in layer_sizes(shapes)], jnp.int32
  )

  def prune(params, mask):
    kept = prune_grow.kept_per_layer(mask)
    fewer = jnp.round((1 - share) * kept.astype(jnp.float32)).astype(jnp.int32)
    counts = jnp.minimum(kept, jnp.maximum(least, fewer))
    return prune_grow.by_magnitude(params, counts, among=mask)

  def client(message, own, data, key):
    seed, params = message
    mask = tree.unravel(own, tree.full_mask(params))
    mine = tree.apply_mask(params, mask)
    good = (_accuracy(model, mine, data) > accuracy) & (data.budget > 0)
    smaller = prune(mine, mask)
    good = good & (tree.num_kept(smaller) < tree.num_kept(mask))
    mask = jax.tree.map(lambda s, m: jnp.where(good, s, m), smaller, mask)
    start = tree.apply_mask(
      jax.tree.map(lambda s, p: jnp.where(good, s, p), seed.tree, mine), mask
    )
    result = local.train(
      moving.masked_loss(cross_entropy, mask),
      start,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    return Upload(
      _Message(
        sparse_values(result.params, mask, new=True),
        moving.dense_part(result.params),
      ),
      jnp.float32(1),
      tree.ravel(mask),
      {"loss": result.loss, "density": tree.density(mask)},
    )

  def server(state, reduced):
    (kept, dense), (held, _) = reduced
    flat = jnp.where(held, kept, tree.ravel(state.params))
    return state._replace(params=moving.join(flat, dense, state.params))

  def init(key):
    params = model.init(key)
    return LotteryFLState(params, params)

  reducer = reduce.overlap_mean()
  return Algorithm(
    init=init,
    downlink=lambda state, client_id: (
      wire.Known(state.start, setup_bytes=8),
      state.params,
    ),
    client=client,
    reducer=reducer._replace(
      zero=lambda m: reducer.zero(moving.values_and_holders(m)),
      add=lambda acc, m, w: reducer.add(acc, moving.values_and_holders(m), w),
    ),
    server=server,
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
    init_client=lambda key: jnp.ones(tree.num_maskable(shapes), bool),
    predict=lambda state, own, client_id: tree.apply_mask(
      state.params, tree.unravel(own, tree.full_mask(state.params))
    ),
  )


def _accuracy(model, params, data):
  """f32[]: on all the client's examples at once."""
  real = jnp.arange(data.index.shape[0]) < data.count
  rows = data.take(jnp.arange(data.index.shape[0]))
  hits = (jnp.argmax(model.apply(params, rows.x), axis=-1) == rows.y) & real
  share = jnp.maximum(data.count, 1).astype(jnp.float32)
  return jnp.sum(hits).astype(jnp.float32) / share
