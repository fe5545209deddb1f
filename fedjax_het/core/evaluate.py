"""Evaluation: the global model on held-out data, each client on its own test.

Everything runs on the device inside a block, in memory O(batch).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_het.core.cohort import client_data
from fedjax_het.core.rounds import TrainState
from fedjax_het.core.types import (
  Algorithm,
  Array,
  Examples,
  FederatedData,
  Model,
  Params,
)


def make_evaluate(
  algorithm: Algorithm,
  model: Model,
  *,
  batch_size: int = 32,
  chunk: int = 1,
  judge: Callable[[TrainState, FederatedData], Array] | None = None,
):
  """Builds the evaluation at the end of a block.

  Args:
    algorithm: gives the global and the per-client parameters.
    model: the network.
    batch_size: examples per forward pass of one client's test split; held-out
      data go 32 times as many at once.
    chunk: clients evaluated together under vmap.
    judge: another way to the clients' accuracies, (state, data) -> f32[N], such
      as `masks.personal.judge`, which never unpacks the masks of all clients;
      default `client_accuracy`.

  Returns:
    (state, data) -> dict:
      accuracy, loss: f32[], the global model on `data.heldout`;
      client_accuracy: f32[N], each client on its own test split, with the
        parameters that `algorithm.predict` gives it, after
        `algorithm.adapt`;
      client_mean, client_std, client_worst_decile: f32[], over clients.
  """

  def evaluate(state, data):
    params = algorithm.global_params(state.server)
    correct, loss = _heldout(model, params, data.heldout, 32 * batch_size)
    if judge is not None:
      each = judge(state, data)
    else:
      each = client_accuracy(
        algorithm, model, state, data, batch_size=batch_size, chunk=chunk
      )
    return {
      "accuracy": correct,
      "loss": loss,
      "client_accuracy": each,
      **summarise(each),
    }

  return evaluate


def client_accuracy(
  algorithm: Algorithm,
  model: Model,
  state: TrainState,
  data: FederatedData,
  *,
  batch_size: int = 32,
  chunk: int = 1,
) -> Array:
  """f32[N]: each client's accuracy on its own test split."""
  key = jax.random.fold_in(state.key, state.round)

  def one(args):
    client, client_state = args
    if algorithm.predict is None:
      params = algorithm.global_params(state.server)
    else:
      params = algorithm.predict(state.server, client_state, client)
    if algorithm.adapt is not None:
      params = algorithm.adapt(
        params, client_data(data, client), jax.random.fold_in(key, client)
      )
    index, count = data.test.index[client], data.test.count[client]

    def step(carry):
      start, hits = carry
      position = start + jnp.arange(batch_size)
      row = index[jnp.minimum(position, index.shape[0] - 1)]
      guess = jnp.argmax(model.apply(params, data.examples.x[row]), axis=-1)
      hit = (guess == data.examples.y[row]) & (position < count)
      return start + batch_size, hits + jnp.sum(hit)

    _, hits = jax.lax.while_loop(
      lambda carry: carry[0] < count, step, (jnp.int32(0), jnp.int32(0))
    )
    return hits.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)

  clients = jnp.arange(data.num_clients)
  return jax.lax.map(
    one, (clients, state.clients), batch_size=chunk if chunk > 1 else None
  )


def summarise(accuracy: Array) -> dict[str, Array]:
  """Mean, standard deviation and worst decile over clients.

  Args:
    accuracy: f32[N].

  Returns:
    client_mean, client_std f32[]; client_worst_decile f32[], the mean over the
    ceil(N / 10) clients that fare worst.
  """
  worst = jnp.sort(accuracy)[: -(-accuracy.shape[0] // 10)]
  return {
    "client_mean": jnp.mean(accuracy),
    "client_std": jnp.std(accuracy),
    "client_worst_decile": jnp.mean(worst),
  }


def _heldout(
  model: Model, params: Params, data: Examples, batch_size: int
) -> tuple[Array, Array]:
  """Accuracy and mean cross-entropy on `data`, a batch at a time."""
  size = data.y.shape[0]
  batches = -(-size // min(batch_size, size))
  width = -(-size // batches)

  def one(batch):
    position = batch * width + jnp.arange(width)
    real = position < size
    row = jnp.minimum(position, size - 1)
    logits = model.apply(params, data.x[row])
    label = data.y[row]
    log_p = jax.nn.log_softmax(logits)
    log_p = jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]
    hit = jnp.argmax(logits, axis=-1) == label
    return jnp.sum(hit & real), -jnp.sum(jnp.where(real, log_p, 0.0))

  hits, losses = jax.lax.map(one, jnp.arange(batches))
  total = jnp.float32(size)
  return jnp.sum(hits).astype(jnp.float32) / total, jnp.sum(losses) / total
