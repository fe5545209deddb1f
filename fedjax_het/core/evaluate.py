"""Evaluation: the global model on held-out data, each client on its own test.

Everything runs on the device inside a block, in memory O(batch).  What counts
as a loss and as a score is a `Measure`: `classification` unless told otherwise.
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

# (what the model gives [B, ...], y [B, ...]) -> (loss f32[B], score [B]); a
# score is better the higher it is, and a bool is counted.
Measure = Callable[[Array, Array], tuple[Array, Array]]


def classification(logits: Array, label: Array) -> tuple[Array, Array]:
  """Cross-entropy f32[B] and hits bool[B] of logits f32[B, K], label i32[B]."""
  log_p = jax.nn.log_softmax(logits)
  log_p = jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]
  return -log_p, _hit(logits, label)


def make_evaluate(
  algorithm: Algorithm,
  model: Model,
  *,
  batch_size: int = 32,
  chunk: int = 1,
  judge: Callable[[TrainState, FederatedData], Array] | None = None,
  measure: Measure | None = None,
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
    measure: loss and score of each example, for targets that are no classes;
      default `classification`.  "accuracy" below is then the mean score.

  Returns:
    (state, data) -> dict:
      accuracy, loss: f32[], the global model on `data.heldout`;
      client_accuracy: f32[N], each client on its own test split, with the
        parameters that `algorithm.predict` gives it, after
        `algorithm.adapt`;
      client_mean, client_std, client_worst_decile: f32[], over clients;
      client_loss: f32[N], each client's mean loss on its own test split, only
        with `measure` and without `judge`.

  Example (squared error; y f32[n, d]):
    >>> def squared(out, y):
    ...   error = jnp.sum((out - y) ** 2, axis=-1)
    ...   return error, -error
  """

  def evaluate(state, data):
    params = algorithm.global_params(state.server)
    correct, loss = heldout(
      model,
      params,
      data.heldout,
      batch_size=32 * batch_size,
      measure=measure or classification,
    )
    more = {}
    if judge is not None:
      each = judge(state, data)
    elif measure is None:
      each = client_accuracy(
        algorithm, model, state, data, batch_size=batch_size, chunk=chunk
      )
    else:
      more["client_loss"], each = _each_client(
        algorithm, model, state, data, measure, batch_size, chunk
      )
    return {
      "accuracy": correct,
      "loss": loss,
      "client_accuracy": each,
      **summarise(each),
      **more,
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

  def hits(logits, label):
    return (_hit(logits, label),)

  return _each_client(algorithm, model, state, data, hits, batch_size, chunk)[0]


def _each_client(
  algorithm: Algorithm,
  model: Model,
  state: TrainState,
  data: FederatedData,
  values: Callable[[Array, Array], tuple[Array, ...]],
  batch_size: int,
  chunk: int,
) -> tuple[Array, ...]:
  """Each client's means of `values` over its own test split, f32[N] each."""
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

    def sums(start):
      position = start + jnp.arange(batch_size)
      row = index[jnp.minimum(position, index.shape[0] - 1)]
      out = model.apply(params, data.examples.x[row])
      return _sums(values(out, data.examples.y[row]), position < count)

    def step(carry):
      start, total = carry
      total = jax.tree.map(jnp.add, total, sums(start))
      return start + batch_size, total

    zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(sums, jnp.int32(0)))
    _, total = jax.lax.while_loop(
      lambda carry: carry[0] < count, step, (jnp.int32(0), zero)
    )
    size = jnp.maximum(count, 1).astype(jnp.float32)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / size, total)

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


def heldout(
  model: Model,
  params: Params,
  data: Examples,
  *,
  batch_size: int = 1024,
  measure: Measure = classification,
) -> tuple[Array, Array]:
  """Mean score f32[] and mean loss f32[] on `data`, a batch at a time."""
  size = data.y.shape[0]
  batches = -(-size // min(batch_size, size))
  width = -(-size // batches)

  def one(batch):
    position = batch * width + jnp.arange(width)
    row = jnp.minimum(position, size - 1)
    out = model.apply(params, data.x[row])
    return _sums(measure(out, data.y[row]), position < size)

  losses, scores = jax.lax.map(one, jnp.arange(batches))
  total = jnp.float32(size)
  return jnp.sum(scores).astype(jnp.float32) / total, jnp.sum(losses) / total


def _hit(logits: Array, label: Array) -> Array:
  return jnp.argmax(logits, axis=-1) == label


def _sums(values: tuple[Array, ...], real: Array) -> tuple[Array, ...]:
  """The sum of each of `values` [B] where `real` bool[B]; bools are counted."""
  return jax.tree.map(
    lambda leaf: jnp.sum(jnp.where(real, leaf, jnp.zeros_like(leaf))), values
  )
