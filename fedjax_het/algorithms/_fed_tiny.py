"""FedTiny's progressive pruning: the server moves the mask, block by block.

Clients train the kept weights.  Now and then each also sends the few largest
gradients at pruned weights of one block of layers; the server lets as many
weights grow there as it prunes, so every layer keeps its number of weights.

Up: 32 bits a kept weight and a dense parameter; after an adjustment also, for
each layer l of the block, a_l gradients of 32 bits with a_l ceil(log2 P_l) bits
for their positions (or P_l, if that is less) and 32 bits for their number.
Down: see `_moving_mask`.

A device needs O(d P + sum of a_l) memory: the gradient at pruned weights can be
looked through layer by layer with a buffer of a_l.  (The simulator holds P.)

Departures: the paper's full text was not available; the rule is that of two
independent pieces of code, rounding and ties are ours.  There all devices
take part in all rounds and know the mask; here those who missed a change are
sent it.  Candidates of the first mask are chosen before, by `bn_selection`.

References:
  Huang et al.: Distributed Pruning Towards Tiny Neural Networks in Federated
  Learning, ICDCS 2023, arXiv:2212.01977.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms import _moving_mask as moving
from fedjax_het.core import local, reduce
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Algorithm, Model, PyTree, Upload
from fedjax_het.masks import prune_grow, tree
from fedjax_het.masks.at_init import Pruning
from fedjax_het.masks.sparse_wire import SparseValues, sparse_values


class _Body(NamedTuple):
  """change: of the kept weights;  dense: of the others;  gradients: of some."""

  change: SparseValues
  dense: PyTree
  gradients: SparseValues


def fed_tiny(
  model: Model,
  pruning: Pruning,
  *,
  num_clients: int,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  adjust_every: int = 10,
  adjust_until: int = 100,
  share: float = 0.3,
  blocks: int = 5,
  order: Sequence[str] | None = None,
) -> Algorithm:
  """FedAvg on a mask that moves towards large gradients.

  After rounds t = R, 2 R, ... < T one block of layers is adjusted, from the
  output to the input and again: a_l = round(share / 2 (1 + cos(pi t / T)) n_l)
  of its n_l weights with the smallest |w| go, and of the pruned ones those a_l
  come, at 0, with the largest |g|, g = sum_k (n_k / n) g_k, in which a client
  counts as 0 where it sent nothing.

  Args:
    model: the network; `models.batch_norm` has those of the paper.
    pruning: chooses the first mask, e.g. `masks.prune_at_init`.
    num_clients: N of the data it runs on.
    optimizer: the clients' optimiser, made afresh every round; it must leave a
      zero weight with zero gradient at zero, as optax's all do.
    batch_size: B.
    epochs: E, local epochs per round.
    adjust_every: R, rounds between adjustments.
    adjust_until: T, the mask stays from then on; 0: it never moves.
    share: alpha, in [0, 1].
    blocks: into how many blocks of neighbouring layers the network is cut; 1
      adjusts all layers each time.  No more than there are layers.
    order: the layers' names from input to output (`masks.tree.layers`);
      default: by name, numbers in names counting as numbers.

  Returns:
    An `Algorithm`; metrics: loss.

  Raises:
    UserError: a wrong share, or an `order` that is not of these layers.
  """
  check_schedule(adjust_every, adjust_until, share)
  cross_entropy = local.cross_entropy(model)
  active = _block_table(model, blocks, order)  # bool[B, L]
  train = functools.partial(
    local.train, optimizer=optimizer, batch_size=batch_size, epochs=epochs
  )

  def counts_now(round, mask):
    """i32[L]: a_l after this round, 0 where nothing is adjusted."""
    now = moving.adjusting(round, every=adjust_every, until=adjust_until)
    block = ((round + 1) // adjust_every - 1) % len(active)
    counts = prune_grow.cosine_counts(
      mask, round + 1, share=share, stop=adjust_until
    )
    return jnp.where(now & jnp.asarray(active)[block], counts, 0)

  def client(message, state, data, key):
    del state
    start, mask = moving.receive(model, message)
    result = train(moving.masked_loss(cross_entropy, mask), start, data, key)
    counts = counts_now(message.round, mask)

    def look():
      """The largest gradients at pruned weights, zeros elsewhere."""
      gradient = moving.batch_gradient(
        cross_entropy,
        tree.apply_mask(result.params, mask),
        data,
        jax.random.fold_in(key, 1),
        batch_size=batch_size,
      )
      chosen = prune_grow.inactive_top(gradient, mask, counts)
      return sparse_values(gradient, chosen, new=True)

    empty = jax.tree.map(jnp.zeros_like, mask)
    gradients = jax.lax.cond(
      jnp.any(counts > 0),
      look,
      lambda: sparse_values(optax.tree.zeros_like(start), empty, new=True),
    )
    change = optax.tree.sub(result.params, start)
    body = _Body(
      sparse_values(change, mask, new=False),
      moving.dense_part(change),
      gradients,
    )
    return Upload(
      moving.Answer(message.client, body),
      data.count.astype(jnp.float32),
      (),
      {"loss": result.loss},
    )

  def server(state, reduced):
    came, (change, dense, gradients) = reduced
    params = optax.tree.add(
      state.params, moving.join(change, dense, state.params)
    )
    counts = counts_now(state.round, state.mask)
    params, mask = jax.lax.cond(
      jnp.any(counts > 0),
      lambda p: prune_grow.prune_and_grow(
        p, state.mask, tree.unravel(gradients, p), counts
      ),
      lambda p: (p, state.mask),
      params,
    )
    return moving.moved(state, params, mask, came)

  return Algorithm(
    init=moving.start(model, pruning, num_clients),
    downlink=moving.send,
    client=client,
    reducer=moving.roll_call(
      num_clients,
      reduce.weighted_mean(),
      lambda body: (body.change.values, body.dense, body.gradients.values),
    ),
    server=server,
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
  )


def check_schedule(every: int, until: int, share: float) -> None:
  """Refuses a schedule that cannot be meant."""
  if every < 1 or until < 0:
    raise UserError(
      f"adjust_every {every}, adjust_until {until}: give at least 1 round "
      "between adjustments, and 0 or more rounds with any"
    )
  if not 0 <= share <= 1:
    raise UserError(
      f"share {share:g} is not in [0, 1]: it is the share of a layer's kept "
      "weights that an adjustment moves"
    )


def _block_table(
  model: Model, blocks: int, order: Sequence[str] | None
) -> np.ndarray:
  """bool[B, L]: which layers, in flat order, adjustment number j may move."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  names = list(tree.layers(shapes))
  order = sorted(names, key=_natural) if order is None else list(order)
  for name in order:
    if name not in names:
      raise unknown("layer", name, names)
  if sorted(order) != sorted(names) or blocks < 1:
    raise UserError(
      f"order has {len(order)} layers and blocks is {blocks}: name each of "
      f"{', '.join(names)} once, and ask for 1 block or more"
    )
  parts = np.array_split(np.array(order), min(blocks, len(names)))
  return np.array([[name in part for name in names] for part in parts[::-1]])


def _natural(name: str) -> list:
  """Sorts Dense_10 after Dense_9."""
  return [
    (0, int(part), "") if part.isdigit() else (1, 0, part)
    for part in re.split(r"(\d+)", name)
  ]
