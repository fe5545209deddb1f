"""FedAvg on a fixed mask: dense training of the weights that pruning left.

Up and down: the surviving weights and the biases, 32 (nz + biases) bits.  Once:
the 64-bit seed from which everybody rebuilds the initial weights and the mask
(which costs nothing to send where the pruning needs no data).  With a mask of
ones this is FedAvg.

It is the upper bound that HideNseek's sign training is judged against: the
same network, the same mask, 32 times the bits.

References:
  Tanaka et al.: Pruning neural networks without any data by iteratively
  conserving synaptic flow, NeurIPS 2020, arXiv:2006.05467.
  McMahan et al.: Communication-Efficient Learning of Deep Networks from
  Decentralized Data, AISTATS 2017, arXiv:1602.05629.
"""

import functools
from typing import NamedTuple

import jax
import optax

from fedjax_het.core import local, reduce, wire
from fedjax_het.core.types import Algorithm, Array, Model, Params, Upload
from fedjax_het.masks import budgets, tree
from fedjax_het.masks.at_init import Pruning
from fedjax_het.masks.support import Support, support_of


class MaskedFedAvgState(NamedTuple):
  """params: zero outside the mask;  support: where the survivors are."""

  params: Params
  support: Support


def masked_fed_avg(
  model: Model,
  pruning: Pruning,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """FedAvg in which pruned weights stay zero and never travel.

  Args:
    model: the network.
    pruning: chooses the mask, `masks.prune_at_init`.
    optimizer: the clients' optimiser, made afresh every round; it must leave a
      zero weight with zero gradient at zero, as optax's all do.
    batch_size: B.
    epochs: E, local epochs per round.

  Returns:
    An `Algorithm`; metrics: loss.
  """
  cross_entropy = local.cross_entropy(model)

  def init(key):
    params_key, prune_key = jax.random.split(key)
    params = model.init(params_key)
    mask = pruning.mask(prune_key, params)
    size = budgets.surviving(params, pruning.density)
    return MaskedFedAvgState(
      tree.apply_mask(params, mask), support_of(mask, size)
    )

  def send(state, client_id):
    del client_id
    return wire.Known(state.support, setup_bytes=8), _survivors(
      state.support, state.params
    )

  def client(message, state, data, key):
    del state
    known, (kept, dense) = message
    support = known.tree
    start = _network(model, support, kept, dense)
    mask = support.mask(start)
    result = local.train(
      lambda p, batch, key: cross_entropy(tree.apply_mask(p, mask), batch, key),
      start,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    delta = jax.tree.map(lambda new, old: new - old, result.params, start)
    weight = data.count.astype("float32")
    return Upload(_survivors(support, delta), weight, (), {"loss": result.loss})

  def server(state, reduced):
    kept, dense = _survivors(state.support, state.params)
    kept = kept + reduced[0]
    dense = [old + delta for old, delta in zip(dense, reduced[1], strict=True)]
    return state._replace(params=_network(model, state.support, kept, dense))

  return Algorithm(
    init=init,
    downlink=send,
    client=client,
    reducer=reduce.weighted_mean(),
    server=server,
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
  )


def _survivors(support: Support, params: Params) -> tuple[Array, list[Array]]:
  """What travels: the kept weights f32[nz] and the leaves never pruned."""
  is_layer = jax.tree.leaves(tree.maskable(params))
  leaves = jax.tree.leaves(params)
  dense = [x for x, layer in zip(leaves, is_layer, strict=True) if not layer]
  return support.gather(params), dense


def _network(
  model: Model, support: Support, kept: Array, dense: list[Array]
) -> Params:
  """The inverse of `_survivors`."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  rest = iter(dense)
  params = jax.tree.map(
    lambda shape, layer: shape if layer else next(rest),
    shapes,
    tree.maskable(shapes),
  )
  return support.place(kept, params)
