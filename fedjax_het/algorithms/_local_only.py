"""Local training only: the baseline in which nobody talks to anybody.

Nothing travels, up or down, but the 64-bit seed of the common start, once.  A
client keeps its model, 32 P bits.

Clients train only in rounds in which they are selected, so that at equal rounds
they do as many steps as in the methods they are compared with.  The "global
model" is the common start, which is never trained: judge this baseline by
`client_accuracy`.

References:
  T. Yu, E. Bagdasaryan and V. Shmatikov: Salvaging Federated Learning by Local
  Adaptation, 2020, arXiv:2002.04758 (why it belongs in every comparison).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _memory
from fedjax_het.core import local, reduce, wire
from fedjax_het.core.types import Algorithm, Model, Params, Upload


class LocalOnlyState(NamedTuple):
  """start: where every client's own model starts."""

  start: Params


def local_only(
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """Every client trains a model of its own from a common start.

  Args:
    model: the network.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.

  Returns:
    An `Algorithm`; metrics: loss.
  """
  loss = local.cross_entropy(model)

  def client(seed, kept, data, key):
    result = local.train(
      loss,
      _memory.recall(kept, seed.tree),
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    return Upload(
      (),
      data.count.astype(jnp.float32),
      _memory.remember(kept, result.params, data),
      {"loss": result.loss},
    )

  return Algorithm(
    init=lambda key: LocalOnlyState(model.init(key)),
    downlink=lambda state, client_id: wire.Known(state.start, setup_bytes=8),
    client=client,
    reducer=reduce.weighted_mean(),
    server=lambda state, reduced: state,
    global_params=lambda state: state.start,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
    init_client=lambda key: _memory.nothing(jax.eval_shape(model.init, key)),
    predict=lambda state, kept, client_id: _memory.recall(kept, state.start),
  )
