"""FedDST: clients move their own masks, the server keeps what weighs most.

In an adjustment round each client trains, prunes and grows its copy of the
mask, trains on, and sends values and positions.  The server averages each
weight over those who kept it and keeps as many of the largest as before.

Up: 32 bits a kept weight and a dense parameter; in an adjustment round also the
positions, in each layer the shorter of P_l bits and n_l ceil(log2 P_l) bits,
and 32 bits for their number.  (The authors' cost model counts (1 - S) P bits
for them, fewer than a mask takes.)  Down: see `_moving_mask`.

Departures: the gradient by which weights grow is that of one batch; the
optimiser keeps its moments over the adjustment; the number of weights that move
is a share of those kept in each layer, as in FedTiny.  The first mask is
`pruning`'s; in the paper it is random with `masks.budgets.erk`'s densities.

References:
  Bibikar et al.: Federated Dynamic Sparse Training: Computing Less,
  Communicating Less, Yet Learning Better, AAAI 2022, arXiv:2112.09824.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _moving_mask as moving
from fedjax_het.algorithms._fed_tiny import check_schedule
from fedjax_het.algorithms._two_trainings import TwoTrainings
from fedjax_het.core import local, reduce
from fedjax_het.core.types import Algorithm, Model, PyTree, Upload
from fedjax_het.masks import prune_grow, tree
from fedjax_het.masks.at_init import Pruning
from fedjax_het.masks.sparse_wire import SparseValues, sparse_values


class _Body(NamedTuple):
  """kept: the client's weights where its mask is;  dense: the others."""

  kept: SparseValues
  dense: PyTree


def fed_dst(
  model: Model,
  pruning: Pruning,
  *,
  num_clients: int,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  epochs_after: int = 1,
  adjust_every: int = 15,
  adjust_until: int = 100,
  share: float = 0.05,
) -> Algorithm:
  """Dynamic sparse training at the clients.

  After rounds t = R, 2 R, ... < T the mask moves: a client prunes the
  a_l = round(share / 2 (1 + cos(pi t / T)) n_l) smallest |w| of each layer and
  grows, at 0, the a_l pruned ones with the largest |g|.  With its mask m_k,

    w = sum_k n_k m_k w_k / sum_k n_k m_k,

  of which the server keeps the n_l largest |w| of each layer.

  Args:
    model: the network.
    pruning: chooses the first mask.
    num_clients: N of the data it runs on.
    optimizer: the clients' optimiser, made afresh every round; it must leave a
      zero weight with zero gradient at zero, as optax's all do.
    batch_size: B.
    epochs, epochs_after: local epochs of a round before and after the moment
      at which a mask moves; half of a budget of steps is for each.
    adjust_every: R, rounds between adjustments.
    adjust_until: T, the mask stays from then on; 0: it never moves.
    share: of a layer's kept weights that move at first, in [0, 1].

  Returns:
    An `Algorithm`; metrics: loss.

  Raises:
    UserError: a wrong share or schedule.
  """
  check_schedule(adjust_every, adjust_until, share)
  cross_entropy = local.cross_entropy(model)
  trainings = TwoTrainings(batch_size, epochs, epochs_after)

  def moves(round):
    return moving.adjusting(round, every=adjust_every, until=adjust_until)

  def train(params, mask, data, key, epochs, opt_state=None):
    result = local.train(
      moving.masked_loss(cross_entropy, mask),
      params,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
      opt_state=opt_state,
    )
    return result._replace(params=tree.apply_mask(result.params, mask))

  def adjust(params, mask, round, data, key):
    gradient = moving.batch_gradient(
      cross_entropy, params, data, key, batch_size=batch_size
    )
    counts = prune_grow.cosine_counts(
      mask, round + 1, share=share, stop=adjust_until
    )
    return prune_grow.prune_and_grow(params, mask, gradient, counts)

  def client(message, state, data, key):
    del state
    first_key, look_key, second_key = jax.random.split(key, 3)
    start, mask = moving.receive(model, message)
    first, second = trainings.share(data)
    before = train(start, mask, first, first_key, epochs)
    params, mask = jax.lax.cond(
      moves(message.round),
      lambda p: adjust(p, mask, message.round, first, look_key),
      lambda p: (p, mask),
      before.params,
    )
    after = train(
      params, mask, second, second_key, epochs_after, before.opt_state
    )
    body = _Body(
      sparse_values(after.params, mask, new=moves(message.round)),
      moving.dense_part(after.params),
    )
    steps = [
      local.num_steps(d.count, d.budget, batch_size=batch_size, epochs=e)
      for d, e in ((first, epochs), (second, epochs_after))
    ]
    steps = jnp.stack(steps).astype(jnp.float32)
    losses = jnp.stack([before.loss, after.loss])
    return Upload(
      moving.Answer(message.client, body),
      data.count.astype(jnp.float32),
      (),
      {"loss": jnp.sum(losses * steps) / jnp.maximum(jnp.sum(steps), 1)},
    )

  def server(state, reduced):
    came, ((kept, dense), (held, _)) = reduced
    params = moving.join(kept, dense, state.params)
    held = tree.unravel(held, tree.full_mask(params))
    mask = jax.lax.cond(
      moves(state.round),
      lambda: prune_grow.by_magnitude(
        params, prune_grow.kept_per_layer(state.mask), among=held
      ),
      lambda: state.mask,
    )
    return moving.moved(state, params, mask, came)

  return Algorithm(
    init=moving.start(model, pruning, num_clients),
    downlink=moving.send,
    client=client,
    reducer=moving.roll_call(
      num_clients, reduce.overlap_mean(), moving.values_and_holders
    ),
    server=server,
    global_params=lambda state: state.params,
    local_steps=trainings.num_steps,
  )
