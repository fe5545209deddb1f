"""Centralised training: what pooling all clients' data would give.

Run it on `pooled(data)`, a federation of one client that holds everybody's
training examples.  Down: the model;  up: its change, 32 P bits each way, which
no comparison should count.  The data centre keeps its optimiser's moments from
round to round, so that rounds only say when it is evaluated.  On data of
several clients it is FedAvg whose clients keep their moments.
"""

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.core import local
from fedjax_het.core.types import (
  NO_BUDGET,
  Algorithm,
  FederatedData,
  Model,
  Rows,
  Upload,
)


def centralised(
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
) -> Algorithm:
  """Plain training with one optimiser, over all rounds, on `pooled(data)`.

  Args:
    model: the network.
    optimizer: never restarted.
    batch_size: B.
    epochs: E, passes over the pooled data per round.

  Returns:
    An `Algorithm`; metrics: loss.  Its global model can be evaluated on the
    original data: it keeps nothing per client that evaluation needs.
  """
  loss = local.cross_entropy(model)

  def client(params, opt_state, data, key):
    result = local.train(
      loss,
      params,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
      opt_state=opt_state,
    )
    change = optax.tree.sub(result.params, params)
    weight = data.count.astype(jnp.float32)
    return Upload(change, weight, result.opt_state, {"loss": result.loss})

  return fed_avg(
    model, optimizer=optimizer, batch_size=batch_size, epochs=epochs
  )._replace(
    client=client,
    init_client=lambda key: optimizer.init(
      optax.tree.zeros_like(model.init(key))
    ),
  )


def pooled(data: FederatedData) -> FederatedData:
  """One client that holds what all clients of `data` hold, without a budget.

  Args:
    data: N clients, concrete arrays.

  Returns:
    The same examples and held-out data, as a federation of one client.
  """

  def pool(rows):
    index, count = np.asarray(rows.index), np.asarray(rows.count)
    real = np.arange(index.shape[1])[None] < count[:, None]
    every = jnp.asarray(index[real])[None]
    return Rows(every, jnp.full(1, every.shape[1], jnp.int32))

  return data._replace(
    train=pool(data.train),
    test=pool(data.test),
    budget=jnp.full(1, NO_BUDGET, jnp.int32),
    devices=None,  # a data centre is no member of the fleet
  )
