"""Runs the clients of a round: sorted by work, cut into chunks, reduced.

Clients are sorted by their local steps and cut into chunks of M.  A chunk runs
under `vmap` (M = 1: no vmap at all), chunks run under `scan`, and the upload of
a chunk is folded into the reducer's accumulator at once, so memory is O(M), and
nobody waits for a straggler of another chunk.  Over a mesh the chunks are dealt
to the devices, and the accumulators are merged at the end.

What M is best is a property of the backend: XLA CPU runs a scan over clients
2-5x faster than a vmap (`experiments/results/bench_engine`), a GPU wants as
many clients as fit its memory (`core.chunking`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from fedjax_het.core import clock as virtual
from fedjax_het.core import wire
from fedjax_het.core.clock import Clock
from fedjax_het.core.local import all_finite
from fedjax_het.core.types import (
  Algorithm,
  Array,
  ClientData,
  FederatedData,
  Key,
  PyTree,
)

AXIS = "clients"


class Cohort(NamedTuple):
  """What happened to each client of a round, in the order they were chosen.

  ids: i32[C];  ok: bool[C], False where the upload did not count.
  present: bool[C], False where it was offline, or later than the deadline.
  weight: f32[C], 0 where not ok;  steps: i32[C], local steps done.
  up_bytes, down_bytes: u32[C], counted from the messages.
  seconds, joules: f32[C], virtual time and energy (`core.clock`), time up to
    the deadline; None if the data say nothing about devices.
  metrics: dict of f32[C], what each client reported.
  seen: what the selector observed of each upload, [C, ...]; `()` for nothing.
  probe_bytes: u32[], what clients received to tell the selector their loss;
    None if it asks nobody.
  """

  ids: Array
  ok: Array
  present: Array
  weight: Array
  steps: Array
  up_bytes: Array
  down_bytes: Array
  seconds: Array | None
  joules: Array | None
  metrics: dict[str, Array]
  seen: PyTree = ()
  probe_bytes: Array | None = None


class _Work(NamedTuple):
  """One slot of the schedule; place i32 is C and real is False for padding."""

  place: Array
  id: Array
  real: Array
  state: PyTree


def client_data(data: FederatedData, client: Array) -> ClientData:
  """What client number `client` i32[] sees of the federated data set."""
  return ClientData(
    data.examples,
    data.train.index[client],
    data.train.count[client],
    data.budget[client],
  )


def run_cohort(
  algorithm: Algorithm,
  server: PyTree,
  clients: PyTree,
  ids: Array,
  data: FederatedData,
  key: Key,
  *,
  clock: Clock,
  observe: Callable[[PyTree], PyTree] | None = None,
  chunk: int = 1,
  mesh: Mesh | None = None,
) -> tuple[PyTree, PyTree, Cohort]:
  """Trains the chosen clients and reduces their uploads.

  An upload is dropped, and its client keeps its old state, if it says so
  (`Upload.ok`), if any float leaf of it is NaN or Inf, or if its client is
  offline or later than the deadline.

  Args:
    algorithm: the method.
    server: its server state.
    clients: client states stacked [N, ...].
    ids: i32[C], distinct.
    data: the federated data set.
    key: the round's key; client k draws from `fold_in(key, k)`, so the result
      does not depend on order, chunks or devices.
    clock: the virtual time of the round.
    observe: upload's message -> arrays, kept in `Cohort.seen`.
    chunk: M, clients vmapped together.
    mesh: a mesh with the axis "clients", or None for one device.

  Returns:
    (reduced, clients, Cohort).
  """
  devices = 1 if mesh is None else mesh.shape[AXIS]
  work = _schedule(algorithm, clients, ids, data, chunk, devices)
  run = functools.partial(_run_chunks, algorithm, observe, chunk)
  online = virtual.online(data, clock.now)
  if mesh is None:
    acc, done = run(server, work, data, key, clock, online)
  else:
    acc, done = jax.shard_map(
      functools.partial(_run_and_merge, algorithm, run, devices),
      mesh=mesh,
      in_specs=(Spec(), Spec(AXIS), Spec(), Spec(), Spec(), Spec()),
      out_specs=(Spec(), Spec(AXIS)),
      check_vma=False,  # accumulators start equal and differ after a scan
    )(server, work, data, key, clock, online)
  states, cohort = done
  target = jnp.where(work.real, work.id, data.num_clients)  # padding: no client
  clients = jax.tree.map(
    lambda old, new: old.at[target].set(new, mode="drop"), clients, states
  )
  slots = jnp.arange(work.place.shape[0])
  slot = jnp.zeros_like(ids).at[work.place].set(slots, mode="drop")
  return (
    algorithm.reducer.finish(acc),
    clients,
    jax.tree.map(lambda leaf: leaf[slot], cohort),
  )


def _schedule(algorithm, clients, ids, data, chunk, devices) -> _Work:
  """Sorts by work and deals to devices: slots [D, chunks, M], flattened.

  Neighbours in the sorted order run at the same time on all devices, so chunks
  are even and devices finish together.
  """
  steps = jax.vmap(algorithm.local_steps)(
    data.train.count[ids], data.budget[ids]
  )
  order = jnp.argsort(-steps)
  size = ids.shape[0]
  chunks = -(-size // (chunk * devices))
  order = jnp.pad(
    order, (0, chunks * chunk * devices - size), constant_values=size
  )
  order = order.reshape(chunks, chunk, devices).transpose(2, 0, 1).reshape(-1)
  real = order < size
  chosen = ids[jnp.where(real, order, 0)]
  state = jax.tree.map(lambda leaf: leaf[chosen], clients)
  return _Work(order, chosen, real, state)


def _run_chunks(algorithm, observe, chunk, server, work, *of_round):
  """Scans over the chunks of one device, folding uploads as they come."""
  one = functools.partial(_run_client, algorithm, observe, server, *of_round)
  first = jax.tree.map(lambda leaf: leaf[0], work)
  message = jax.eval_shape(one, first)[0]
  work = jax.tree.map(
    lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), work
  )

  def step(acc, part):
    if chunk == 1:
      part = jax.tree.map(lambda leaf: leaf[0], part)
      done = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], one(part))
    else:
      done = jax.vmap(one)(part)
    messages, state, cohort = done
    return algorithm.reducer.add(acc, messages, cohort.weight), (state, cohort)

  acc, done = jax.lax.scan(step, algorithm.reducer.zero(message), work)
  flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), done)
  return acc, flat


def _run_and_merge(algorithm, run, devices, server, work, *of_round):
  """`_run_chunks` on each device, then the accumulators merged in one order."""
  acc, done = run(server, work, *of_round)
  parts = jax.lax.all_gather(acc, AXIS)
  parts = [jax.tree.map(lambda a, d=d: a[d], parts) for d in range(devices)]
  return functools.reduce(algorithm.reducer.merge, parts), done


def _run_client(
  algorithm, observe, server, data, key, clock, online, work: _Work
):
  """One client: (message, state, its row of `Cohort`), neutral if dropped."""
  message = algorithm.downlink(server, work.id)
  mine = client_data(data, work.id)
  # padding and whoever is offline train for no step
  here = work.real & online[work.id]
  mine = mine._replace(budget=jnp.where(here, mine.budget, 0))
  upload = algorithm.client(
    message, work.state, mine, jax.random.fold_in(key, work.id)
  )
  steps = algorithm.local_steps(mine.count, mine.budget)
  up_bytes = jnp.where(here, jnp.uint32(wire.nbytes(upload.message)), 0)
  down_bytes = jnp.where(here, jnp.uint32(wire.nbytes(message)), 0)
  seconds = joules = None
  if data.devices is not None:
    seconds, joules = virtual.cost(
      data.devices,
      work.id,
      clock.key,
      gradients=algorithm.step_gradients * steps.astype(jnp.float32),
      up_bytes=up_bytes,
      down_bytes=down_bytes,
    )
    here = here & (seconds <= clock.deadline)
    seconds = jnp.minimum(seconds, clock.deadline)
  sent = upload.message, upload.weight, upload.client_state, upload.metrics
  ok = here & upload.ok & all_finite(sent)

  def keep(new, old):
    return jnp.where(ok, new, old)

  # Zero times NaN is NaN: a dropped message must be replaced, not weighted.
  clean = jax.tree.map(lambda m: keep(m, jnp.zeros_like(m)), upload.message)
  cohort = Cohort(
    ids=work.id,
    ok=ok,
    present=here,
    weight=keep(jnp.float32(upload.weight), jnp.float32(0)),
    steps=steps,
    up_bytes=up_bytes,
    down_bytes=down_bytes,
    seconds=seconds,
    joules=joules,
    metrics={k: keep(v, jnp.zeros_like(v)) for k, v in upload.metrics.items()},
    seen=observe(clean) if observe else (),
  )
  return clean, jax.tree.map(keep, upload.client_state, work.state), cohort
