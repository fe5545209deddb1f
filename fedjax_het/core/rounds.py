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

from fedjax_het.core.cohort import Cohort, run_cohort
from fedjax_het.core.types import (
  Algorithm,
  Array,
  FederatedData,
  Key,
  PyTree,
)

Select = Callable[[Key, FederatedData], Array]


class TrainState(NamedTuple):
  """Everything that a run carries; what a checkpoint holds.

  server: the algorithm's server state.
  clients: client states stacked [N, ...], `()` if clients keep nothing.
  key: the run's root key, never changed.
  round: i32[], rounds done.
  """

  server: PyTree
  clients: PyTree
  key: Key
  round: Array


Round = Callable[[TrainState, FederatedData], tuple[TrainState, Cohort]]
Evaluate = Callable[[TrainState, FederatedData], dict[str, Array]]


def init_state(algorithm: Algorithm, key: Key, num_clients: int) -> TrainState:
  """The state before the first round; vmap over `key` for many seeds."""
  server_key, client_key, run_key = jax.random.split(key, 3)
  clients = jax.vmap(algorithm.init_client)(
    jax.random.split(client_key, num_clients)
  )
  return TrainState(algorithm.init(server_key), clients, run_key, jnp.int32(0))


def make_round(
  algorithm: Algorithm,
  select: Select,
  *,
  chunk: int = 1,
  mesh: Mesh | None = None,
) -> Round:
  """Builds one round: (state, data) -> (state, what each client did).

  A round in which every upload was dropped leaves the server as it was.

  Args:
    algorithm: the method.
    select: who trains, (key, data) -> ids i32[C] (see `selection`).
    chunk: M, clients vmapped together (see `core.cohort`).
    mesh: devices to spread the clients over, or None.
  """

  def run_round(state, data):
    key = jax.random.fold_in(state.key, state.round)
    select_key, client_key = jax.random.split(key)
    reduced, clients, cohort = run_cohort(
      algorithm,
      state.server,
      state.clients,
      select(select_key, data),
      data,
      client_key,
      chunk=chunk,
      mesh=mesh,
    )
    some = jnp.any(cohort.ok)
    server = jax.tree.map(
      lambda new, old: jnp.where(some, new, old),
      algorithm.server(state.server, reduced),
      state.server,
    )
    return TrainState(server, clients, state.key, state.round + 1), cohort

  return run_round


def make_block(
  run_round: Round, num_rounds: int, evaluate: Evaluate | None = None
) -> Callable[[TrainState, FederatedData], tuple[TrainState, dict]]:
  """Builds a block: `num_rounds` rounds under one scan, then an evaluation.

  Returns:
    (state, data) -> (state, {"rounds": Cohort of [R, C, ...], "eval": dict});
    "eval" is empty without `evaluate`.
  """

  def block(state, data):
    state, cohorts = jax.lax.scan(
      lambda state, _: run_round(state, data), state, length=num_rounds
    )
    final = evaluate(state, data) if evaluate else {}
    return state, {"rounds": cohorts, "eval": final}

  return block
