"""Rounds: select, send, train, reduce, serve, all on the device.

`make_round` is one round as a pure function, `make_block` scans it and
evaluates at the end.  Nothing is jitted here: jit the block (the host loop in
`training.run` does), vmap it over seeds, or call it in a notebook.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_het.core import wire
from fedjax_het.core.clock import Clock
from fedjax_het.core.cohort import Cohort, run_cohort
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import (
  Algorithm,
  Array,
  FederatedData,
  Key,
  PyTree,
)

Select = Callable[[Key, FederatedData], Array]
EVERYBODY = 2**31


class Selector(NamedTuple):
  """Who trains, from what earlier rounds showed (see `selection`).

  choose: (key, TrainState, data) -> ids i32[C], distinct.
  init: num_clients -> the selector's state, kept in `TrainState.selector`;
    default: it remembers nothing.
  update: (its state, Cohort, round i32[]) -> its state after that round.
  observe: message of an upload -> arrays that `update` finds in `Cohort.seen`;
    None: nothing.
  probes: how many clients receive the model in each round to tell their loss;
    `EVERYBODY`, or any number above N, is N.
  """

  choose: Callable[[Key, "TrainState", FederatedData], Array]
  init: Callable[[int], PyTree] = lambda num_clients: ()
  update: Callable[[PyTree, Cohort, Array], PyTree] = lambda state, *_: state
  observe: Callable[[PyTree], PyTree] | None = None
  probes: int = 0


class TrainState(NamedTuple):
  """Everything that a run carries; what a checkpoint holds.

  server: the algorithm's server state.
  clients: client states stacked [N, ...], `()` if clients keep nothing.
  key: the run's root key, never changed.
  round: i32[], rounds done.
  seconds: f32[], virtual time that they took, 0 without devices.
  selector: what the selector remembers, `()` if nothing.
  """

  server: PyTree
  clients: PyTree
  key: Key
  round: Array
  seconds: Array
  selector: PyTree = ()


Round = Callable[[TrainState, FederatedData], tuple[TrainState, Cohort]]
Evaluate = Callable[[TrainState, FederatedData], dict[str, Array]]


def init_state(
  algorithm: Algorithm,
  key: Key,
  num_clients: int,
  selector: Select | Selector | None = None,
) -> TrainState:
  """The state before the first round; vmap over `key` for many seeds.

  Args:
    algorithm: the method.
    key: the run's root key.
    num_clients: N.
    selector: the one that `make_round` gets, if it is a `Selector`.
  """
  server_key, client_key, run_key = jax.random.split(key, 3)
  clients = jax.vmap(algorithm.init_client)(
    jax.random.split(client_key, num_clients)
  )
  remembers = isinstance(selector, Selector)
  return TrainState(
    algorithm.init(server_key),
    clients,
    run_key,
    round=jnp.int32(0),
    seconds=jnp.float32(0),
    selector=selector.init(num_clients) if remembers else (),
  )


def make_round(
  algorithm: Algorithm,
  select: Select | Selector,
  *,
  chunk: int = 1,
  mesh: Mesh | None = None,
  deadline: float | None = None,
) -> Round:
  """Builds one round: (state, data) -> (state, what each client did).

  A round in which no upload counts leaves the server as it was.

  Args:
    algorithm: the method.
    select: who trains: (key, data) -> ids i32[C], or a `Selector` (see
      `selection`).
    chunk: M, clients vmapped together (see `core.cohort`).
    mesh: devices to spread the clients over, or None.
    deadline: virtual seconds after which the server closes a round without
      those who are late; None waits for everybody.  Needs `data.devices`.

  Raises:
    UserError: a deadline for data without devices, when the round is traced.
  """
  selector = select if isinstance(select, Selector) else _forgetful(select)

  def run_round(state, data):
    if deadline is not None and data.devices is None:
      raise UserError(
        f"a deadline of {deadline} s needs devices with a speed: give "
        "data._replace(devices=profiles.parse(...)), or no deadline"
      )
    key = jax.random.fold_in(state.key, state.round)
    select_key, client_key = jax.random.split(key)
    reduced, clients, cohort = run_cohort(
      algorithm,
      state.server,
      state.clients,
      selector.choose(select_key, state, data),
      data,
      client_key,
      clock=Clock(
        state.seconds,
        jax.random.fold_in(key, 2),
        jnp.float32(jnp.inf if deadline is None else deadline),
      ),
      observe=selector.observe,
      chunk=chunk,
      mesh=mesh,
    )
    some = jnp.any(cohort.ok)
    server = jax.tree.map(
      lambda new, old: jnp.where(some, new, old),
      algorithm.server(state.server, reduced),
      state.server,
    )
    after = TrainState(
      server,
      clients,
      state.key,
      state.round + 1,
      state.seconds + _duration(cohort, data),
      selector.update(state.selector, cohort, state.round),
    )
    cohort = cohort._replace(seen=())
    if selector.probes:
      asked = jnp.uint32(min(selector.probes, data.num_clients))
      model = wire.nbytes(algorithm.downlink(state.server, jnp.int32(0)))
      cohort = cohort._replace(probe_bytes=asked * jnp.uint32(model))
    return after, cohort

  return run_round


def _forgetful(select: Select) -> Selector:
  """A plain function as a selector that remembers nothing."""
  return Selector(lambda key, state, data: select(key, data))


def _duration(cohort: Cohort, data: FederatedData) -> Array:
  """f32[]: as long as the slowest; one slot if nobody could be reached."""
  if data.devices is None:
    return jnp.float32(0)
  longest = jnp.max(cohort.seconds)
  return jnp.where(longest > 0, longest, data.devices.slot_seconds)


def make_block(
  run_round: Round, num_rounds: int, evaluate: Evaluate | None = None
) -> Callable[[TrainState, FederatedData], tuple[TrainState, dict]]:
  """Builds a block: `num_rounds` rounds under one scan, then an evaluation.

  Returns:
    (state, data) -> (state, {"rounds": Cohort of [R, C, ...], "eval": dict});
    "eval" is empty without `evaluate`; beside its figures it holds "seconds",
    the virtual time of the run.
  """

  def block(state, data):
    state, cohorts = jax.lax.scan(
      lambda state, _: run_round(state, data), state, length=num_rounds
    )
    final = {}
    if evaluate:
      final = {**evaluate(state, data), "seconds": state.seconds}
    return state, {"rounds": cohorts, "eval": final}

  return block
