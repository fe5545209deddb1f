"""Runs waves and merges on the device; see `waves`.

Pure functions of arrays; `training.run_async` jits them, pads what they get to
a few sizes and keeps the results.  A method fits if its clients keep no state,
receive the model and send its change: FedAvg, FedProx and their like.  How
changes are merged is the scheduler's, not the method's.

Over a mesh every device owns S / D slots and trains the updates that lie in
them; a merge adds up what each device has.  The server's models are everywhere.

Shape legend: K models of the server, S slots, D devices, n updates of a wave, L
models, U and V slots that a merge reads, J that it writes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from fedjax_het.core.cohort import AXIS, client_data
from fedjax_het.core.errors import UserError
from fedjax_het.core.local import all_finite
from fedjax_het.core.mesh import replicate
from fedjax_het.core.types import (
  Algorithm,
  Array,
  FederatedData,
  Key,
  Params,
)


class AsyncState(NamedTuple):
  """Everything that an asynchronous run carries.

  models: [K, ...], the server's; model 0 is what clients receive.
  starts: [S, ...], what the update in each slot started from.
  changes: [S, ...], what it changed, once it is trained.
  key: the run's root key; update i draws from `fold_in(key, i)`.
  """

  models: Params
  starts: Params
  changes: Params
  key: Key


class Batch(NamedTuple):
  """A wave, n / D updates a device, padded.

  task, client, steps: i32[n], as in `waves.Wave`; padding has 0 steps.
  slot: i32[n], counted within its device; S / D, which is none, for padding.
  count: i32[D], how many of each device's are real; they come first.
  """

  task: Array
  client: Array
  steps: Array
  slot: Array
  count: Array


class Linear(NamedTuple):
  """`waves.Merges`, padded, its slots sorted by device and counted within it.

  models: f32[L, K];  starts: f32[L, U];  changes: f32[L, V].
  start_slots: i32[U];  change_slots: i32[V].
  sent: i32[J], which of the L models;  sent_slots: i32[J], where it goes.
  """

  models: Array
  starts: Array
  changes: Array
  start_slots: Array
  change_slots: Array
  sent: Array
  sent_slots: Array


_LINEAR = Linear(Spec(), Spec(None, AXIS), Spec(None, AXIS), *[Spec(AXIS)] * 4)


def init_state(
  algorithm: Algorithm, key: Key, models: tuple[float, ...], slots: int
) -> AsyncState:
  """The state before the first wave.

  The initial model is that of `rounds.init_state` with the same key.

  Args:
    algorithm: the method.
    key: the run's root key.
    models: the server's models as multiples of the initial one
      (`Scheduler.models`).
    slots: S.
  """
  server_key, _, run_key = jax.random.split(key, 3)
  params = algorithm.global_params(algorithm.init(server_key))
  empty = jax.tree.map(lambda p: jnp.zeros((slots, *p.shape), p.dtype), params)
  return AsyncState(
    jax.tree.map(lambda p: jnp.stack([c * p for c in models]), params),
    empty,
    jax.tree.map(jnp.copy, empty),
    run_key,
  )


def check(algorithm: Algorithm, data: FederatedData) -> None:
  """Says whether a method can run asynchronously.

  Raises:
    UserError: clients that keep state, or messages other than the model down
      and its change up.
  """

  def messages(key):
    server = algorithm.init(key)
    down = algorithm.downlink(server, jnp.int32(0))
    kept = algorithm.init_client(key)
    mine = client_data(data, jnp.int32(0))
    up = algorithm.client(down, kept, mine, key).message
    return algorithm.global_params(server), down, up, kept

  params, down, up, kept = jax.eval_shape(messages, jax.random.key(0))
  if jax.tree.leaves(kept):
    raise UserError(
      "this method's clients keep state from round to round, which an "
      "asynchronous schedule does not carry: use fed_avg or fed_prox"
    )
  for name, message in (("downlink", down), ("upload", up)):
    if message != params:
      raise UserError(
        f"an asynchronous schedule sends the model down and its change up, and "
        f"this method's {name} is something else: use fed_avg or fed_prox"
      )


def spread(state: AsyncState, mesh: Mesh) -> AsyncState:
  """Puts a state on the devices of a mesh; S must be a multiple of D."""

  def put(tree, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))

  return AsyncState(
    put(state.models, Spec()),
    put(state.starts, Spec(AXIS)),
    put(state.changes, Spec(AXIS)),
    replicate(state.key, mesh),
  )


def train_wave(
  algorithm: Algorithm,
  state: AsyncState,
  data: FederatedData,
  batch: Batch,
  *,
  chunk: int = 1,
  mesh: Mesh | None = None,
) -> tuple[AsyncState, dict[str, Array]]:
  """Trains the updates of a wave.

  An update that is not finite counts as no change at all.

  Args:
    algorithm: the method.
    state: `AsyncState`.
    data: the federated data set.
    batch: the wave; n / D is a multiple of `chunk`.
    chunk: updates vmapped together.
    mesh: devices among which the slots are divided, or None.

  Returns:
    (state, what each update reports, [n]: the method's metrics, and "ok").
  """
  run = functools.partial(_train, algorithm, chunk)
  if mesh is not None:
    run = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(Spec(AXIS), Spec(AXIS), Spec(), Spec(), Spec(AXIS)),
      out_specs=Spec(AXIS),
      check_vma=False,  # the loop's carries start equal and differ after it
    )
  changes, reports = run(state.starts, state.changes, state.key, data, batch)
  return state._replace(changes=changes), reports


def merge(
  state: AsyncState, linear: Linear, *, mesh: Mesh | None = None
) -> AsyncState:
  """Runs merges: the server's models, and the starts of what was sent out."""
  run = functools.partial(_merge, None if mesh is None else AXIS)
  if mesh is not None:
    run = jax.shard_map(
      run,
      mesh=mesh,
      in_specs=(Spec(), Spec(AXIS), Spec(AXIS), _LINEAR),
      out_specs=(Spec(), Spec(AXIS)),
      check_vma=False,
    )
  models, starts = run(state.models, state.starts, state.changes, linear)
  return state._replace(models=models, starts=starts)


def global_model(state: AsyncState) -> Params:
  """The model that is evaluated."""
  return jax.tree.map(lambda leaf: leaf[0], state.models)


def _merge(axis, models, starts, changes, linear):
  """One device's part: what it has is added up over `axis`."""

  def leaf(models, starts, changes):
    out = jnp.zeros((linear.models.shape[0], *models.shape[1:]), models.dtype)
    if linear.start_slots.size:
      out = out + _product(linear.starts, starts[linear.start_slots])
    if linear.change_slots.size:
      out = out + _product(linear.changes, changes[linear.change_slots])
    if axis is not None:
      out = jax.lax.psum(out, axis)
    out = out + _product(linear.models, models)
    sent = starts.at[linear.sent_slots].set(out[linear.sent], mode="drop")
    return out[: models.shape[0]], sent

  both = jax.tree.map(leaf, models, starts, changes)
  return jax.tree.transpose(
    jax.tree.structure(models), jax.tree.structure((0, 0)), both
  )


def _product(coefficients: Array, rows: Array) -> Array:
  return jnp.tensordot(
    coefficients, rows, 1, precision=jax.lax.Precision.HIGHEST
  )


def _train(algorithm, chunk, starts, changes, key, data, batch):
  """One device's part of a wave: a chunk at a time, as many as are real."""

  def one(task, client, steps, slot):
    start = jax.tree.map(lambda leaf: leaf[slot], starts)
    mine = client_data(data, client)
    mine = mine._replace(budget=jnp.minimum(mine.budget, steps))
    own = jax.random.fold_in(key, task)
    upload = algorithm.client(start, (), mine, own)
    ok = upload.ok & all_finite((upload.message, upload.metrics))

    def keep(leaf):
      return jnp.where(ok, leaf, jnp.zeros_like(leaf))

    reports = jax.tree.map(keep, upload.metrics) | {"ok": ok}
    return jax.tree.map(keep, upload.message), reports

  columns = batch[:4]
  size = batch.task.shape[0]
  reports = jax.tree.map(
    lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype),
    jax.eval_shape(one, *(column[0] for column in columns))[1],
  )

  def step(number, carry):
    begin = number * chunk
    part = [
      jax.lax.dynamic_slice_in_dim(column, begin, chunk) for column in columns
    ]
    if chunk == 1:  # written in place; padding is never reached
      done = one(*(column[0] for column in part))
      return jax.tree.map(
        lambda old, new, at: jax.lax.dynamic_update_index_in_dim(
          old, new, at, 0
        ),
        carry,
        done,
        _each(carry, part[3][0], begin),
      )
    done = jax.vmap(one)(*part)
    return jax.tree.map(
      lambda old, new, at: old.at[at].set(new, mode="drop"),
      carry,
      done,
      _each(carry, part[3], begin + jnp.arange(chunk)),
    )

  chunks = (batch.count[0] + (chunk - 1)) // chunk
  return jax.lax.fori_loop(0, chunks, step, (changes, reports))


def _each(carry, place, row):
  """Where a chunk's changes and its reports go, for every leaf."""
  changes, reports = carry
  return (
    jax.tree.map(lambda _: place, changes),
    jax.tree.map(lambda _: row, reports),
  )
