"""HeteroFL: every client trains as much of each layer's width as it can.

Client k has a rate r_k (from its memory or its speed) and holds the first
ceil(r_k C) of the C units of every hidden layer.

Down and up: the block of parameters between its units, 32 bits each, about
r_k^2 P of them.  With the masked loss a bit a class more up: which classes the
client has.  Rates are known to both sides since set-up.

Departures: clients compute at full width under a mask (one shape for all), so
the virtual clock charges full-width steps, though bytes are those of the
blocks.  Networks without norm layers only (see `_chain`); the paper's static
batch norm is not there.  Blocks travel as changes.

References:
  Diao et al.: HeteroFL: Computation and Communication Efficient Federated
  Learning for Heterogeneous Clients, ICLR 2021, arXiv:2010.01264.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_het.algorithms._chain import Chain, chain_of
from fedjax_het.algorithms._kept_values import holders_mean, kept_values
from fedjax_het.core import local, wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import (
  Algorithm,
  Array,
  ClientData,
  Model,
  Params,
  Upload,
)
from fedjax_het.masks import tree as mask_tree


class SubModelState(NamedTuple):
  """params: at full width;  round: i32[], rounds done."""

  params: Params
  round: Array


def hetero_fl(
  model: Model,
  rates: Sequence[float],
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  scaler: bool = True,
  masked_loss: bool = True,
  by_examples: bool = False,
  layers: Sequence[str] | None = None,
) -> Algorithm:
  """Averages each coordinate over the clients that hold it.

  With H_j the clients of the round that hold coordinate j,
  w_j = sum_{k in H_j} w_{k,j} / |H_j|, and w_j stays where H_j is empty.
  Rates of 1, no masked loss and `by_examples` make it FedAvg.

  Args:
    model: the network at full width, see `_chain` for which are supported.
    rates: r in (0, 1]; client k has rates[k % len(rates)].
    optimizer: the clients' optimiser, made afresh every round; it must leave a
      zero weight with zero gradient at zero, as optax's all do.
    batch_size: B.
    epochs: E, local epochs per round.
    scaler: divides what hidden layers give by r_k in training, so that the
      units fit into the full network, which is used as it is.
    masked_loss: classes that a client has no example of get the logit 0 in
      training, and its rows of the last layer do not count for them.
    by_examples: weights clients by their examples; the paper counts heads.
    layers: names of the kernels in the order in which they are applied, where
      it is not that of their names.

  Returns:
    An `Algorithm`; metrics: loss.

  Raises:
    UserError: a network with norm layers, rates out of range, or `layers` that
      are not the model's.
  """
  return width_sub_models(
    model,
    rates,
    rolling=False,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    scaler=scaler,
    masked_loss=masked_loss,
    by_examples=by_examples,
    layers=layers,
  )


def width_sub_models(
  model: Model,
  rates: Sequence[float],
  *,
  rolling: bool,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int,
  scaler: bool,
  masked_loss: bool,
  by_examples: bool,
  layers: Sequence[str] | None,
) -> Algorithm:
  """HeteroFL, and FedRolex.

  Args:
    rolling: whether the units kept in round t begin at unit t mod C of each
      layer; behind the last unit comes unit 0.

  The other arguments and the result are those of `hetero_fl`.
  """
  chain = chain_of(model, layers)
  tiers = _widths(chain, rates)

  def units_of(tier, first):
    """Which units of each hidden layer a tier keeps, from unit `first` on."""
    return [
      (jnp.arange(units) - first) % units < jnp.asarray(tiers)[tier, layer]
      for layer, units in enumerate(chain.units[:-1])
    ]

  def send(state, client_id):
    tier = client_id % len(rates)
    first = state.round if rolling else jnp.int32(0)
    everything = jnp.ones(chain.units[-1], bool)
    mask = chain.mask([*units_of(tier, first), everything])
    known = wire.Known(tier, setup_bytes=0)
    return known, first if rolling else (), kept_values(state.params, mask)

  def client(message, state, data, key):
    del state
    known, first, received = message
    rate = jnp.asarray(rates, jnp.float32)[known.tree]
    start_params = received.values

    def apply(params, x):
      params = mask_tree.apply_mask(params, received.mask)
      if scaler:
        params = chain.scale_hidden(params, 1 / rate)
      return model.apply(params, x)

    present = classes_of(data, chain.units[-1])
    seen = Model(
      model.init,
      lambda params, x: jnp.where(present[None], apply(params, x), 0.0),
    )
    result = local.train(
      local.cross_entropy(seen if masked_loss else Model(model.init, apply)),
      start_params,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    mask = received.mask
    if masked_loss:
      units = units_of(known.tree, first if rolling else jnp.int32(0))
      mask = chain.mask([*units, present])
    return Upload(
      kept_values(
        optax.tree.sub(result.params, start_params),
        mask,
        present if masked_loss else None,
      ),
      data.count.astype(jnp.float32) if by_examples else jnp.float32(1),
      (),
      {"loss": result.loss},
    )

  return Algorithm(
    init=lambda key: SubModelState(model.init(key), jnp.int32(0)),
    downlink=send,
    client=client,
    reducer=holders_mean(),
    server=lambda state, change: SubModelState(
      optax.tree.add(state.params, change), state.round + 1
    ),
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
  )


def classes_of(data: ClientData, num_classes: int) -> Array:
  """bool[K]: the classes of which a client has a training example."""
  real = jnp.arange(data.index.shape[0]) < data.count
  label = jnp.where(real, data.examples.y[data.index], num_classes)
  return jnp.zeros(num_classes, bool).at[label].set(True, mode="drop")


def check_rates(rates: Sequence[float]) -> None:
  """Raises a `UserError` unless all rates are in (0, 1]."""
  if not len(rates) or not all(0 < rate <= 1 for rate in rates):
    raise UserError(
      f"rates {[float(rate) for rate in rates]}: give at least one, each in "
      "(0, 1], the share of every layer's units that a client keeps"
    )


def _widths(chain: Chain, rates: Sequence[float]) -> list[list[int]]:
  """ceil(r C) for each rate and hidden layer."""
  check_rates(rates)
  return [
    # 0.7 x 10 is a little above 7 in floats
    [max(1, math.ceil(rate * units - 1e-6)) for units in chain.units[:-1]]
    for rate in rates
  ]
