"""The contract: what one client and one server do, and the data they see.

Shape legend, used in docstrings and `# [C, B]` comments everywhere:
  N clients, C cohort, M clients in a chunk, B batch, T local steps,
  P parameters, W packed words (32 signs each), L layers, K classes,
  R rows a client can hold, S seeds, D devices.

Everything here is a NamedTuple of arrays (a pytree) or of pure functions;
nothing is jitted.  Data are always arguments, never closures: a data set that
is closed over becomes an XLA constant and costs tens of seconds to compile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Key = jax.Array  # a typed PRNG key, `jax.random.key(...)`
Params = Any  # a pytree of float arrays
PyTree = Any

NO_BUDGET = jnp.iinfo(jnp.int32).max  # a client that may do any number of steps


class Examples(NamedTuple):
  """Examples and what is to be learnt of them.

  x: f32[n, ...], or tokens i32[n, T].
  y: labels i32[n]; or targets f32[n, ...] for algorithms with a loss of their
    own, judged with `evaluate.make_evaluate(..., measure=)`.
  """

  x: Array
  y: Array


class Rows(NamedTuple):
  """Who holds what: row k lists the examples of client k, padded with 0.

  index: i32[N, R], positions in `FederatedData.examples`.
  count: i32[N], how many entries of each row are real (>= 1).
  """

  index: Array
  count: Array


class Devices(NamedTuple):
  """What each client's device can do; see `devices.profiles`, `core.clock`.

  step_seconds: f32[N], virtual seconds for one gradient of one batch.
  up_rate, down_rate: f32[N], bytes a second.
  memory: f32[N], bytes that training may take.
  compute_watts, radio_watts: f32[N], power while it trains, and while it sends
    or receives.
  compute_jitter, network_jitter: f32[N], standard deviation of the logarithm
    of a factor, new in every round, on the time it computes and communicates.
  online: bool[T, N], whether it can be reached in each slot of a cycle.
  slot_seconds: f32[], how long a slot lasts.
  """

  step_seconds: Array
  up_rate: Array
  down_rate: Array
  memory: Array
  compute_watts: Array
  radio_watts: Array
  compute_jitter: Array
  network_jitter: Array
  online: Array
  slot_seconds: Array


class FederatedData(NamedTuple):
  """A federated data set as rows + counts over examples on the device.

  examples: all clients' examples, stored once.
  train, test: each client's own train and test rows.
  heldout: examples that no client holds, to judge the global model.
  budget: i32[N], the most local steps that a client can do in a round
    (`NO_BUDGET` for no limit).
  devices: how fast each client is, or None: then nothing has a duration.
  """

  examples: Examples
  train: Rows
  test: Rows
  heldout: Examples
  budget: Array
  devices: Devices | None = None

  @property
  def num_clients(self) -> int:
    return self.train.count.shape[0]


class ClientData(NamedTuple):
  """What one client sees: its rows of the shared examples.

  examples: the shared store (never copied per client).
  index: i32[R], this client's rows;  count: i32[], how many are real.
  budget: i32[], the most local steps it can do.
  """

  examples: Examples
  index: Array
  count: Array
  budget: Array

  def take(self, position: Array) -> Examples:
    """The examples at `position` i32[B] (each < count) of this client."""
    row = self.index[position]
    return Examples(self.examples.x[row], self.examples.y[row])


class Upload(NamedTuple):
  """What a client returns.

  message: the pytree that travels up; its bits are counted by `core.wire`.
  weight: f32[], its weight in the reduction (usually its example count).
  client_state: the client's state after the round, `()` if it keeps none.
  metrics: dict of f32[] scalars to average over the cohort.
  ok: bool[], False drops the upload (the engine also drops any upload in
    which a float leaf is NaN or Inf).
  """

  message: PyTree
  weight: Array
  client_state: PyTree
  metrics: dict[str, Array]
  ok: Array | bool = True


class Reducer(NamedTuple):
  """How uploads combine: a monoid, so that memory is O(chunk), never O(C).

  The same four functions serve the clients of a chunk, the chunks of a round,
  the devices of a mesh and the hosts of a cluster.

  zero: message -> accumulator; `message` gives shapes only.
  add: (accumulator, messages [M, ...], weights f32[M]) -> accumulator.
    Messages of weight 0 must not change it.
  merge: (accumulator, accumulator) -> accumulator; associative.
  finish: accumulator -> what `Algorithm.server` receives.
  """

  zero: Callable[[PyTree], PyTree]
  add: Callable[[PyTree, PyTree, Array], PyTree]
  merge: Callable[[PyTree, PyTree], PyTree]
  finish: Callable[[PyTree], PyTree]


class Algorithm(NamedTuple):
  """One federated method: what one client and one server do.

  No function mentions the client axis, jit, devices, chunks or files.

  init: key -> server state (a NamedTuple).
  downlink: (server state, client id) -> message, what this client receives.
  client: (message, client state, ClientData, key) -> Upload.
  reducer: how uploads combine.
  server: (server state, reduced) -> server state.
  global_params: server state -> parameters of the global model.
  local_steps: (count i32[], budget i32[]) -> i32[], the optimiser steps that a
    client with this many examples and this budget does in a round.
  init_client: key -> client state; default: clients keep nothing.
  predict: (server state, client state, client id) -> the parameters that this
    client is evaluated with; None: everybody uses `global_params`.
  adapt: (params, ClientData, key) -> params, what a client does to these
    parameters before it is judged on its own test split, e.g. some steps on its
    own training data; None: nothing.
  step_gradients: gradients of a batch that one local step takes, on average;
    the virtual clock charges them.
  """

  init: Callable[[Key], PyTree]
  downlink: Callable[[PyTree, Array], PyTree]
  client: Callable[[PyTree, PyTree, ClientData, Key], Upload]
  reducer: Reducer
  server: Callable[[PyTree, PyTree], PyTree]
  global_params: Callable[[PyTree], Params]
  local_steps: Callable[[Array, Array], Array]
  init_client: Callable[[Key], PyTree] = lambda key: ()
  predict: Callable[[PyTree, PyTree, Array], Params] | None = None
  adapt: Callable[[Params, ClientData, Key], Params] | None = None
  step_gradients: float = 1.0


class Model(NamedTuple):
  """A network as two pure functions.

  init: key -> params.
  apply: (params, x f32[B, ...]) -> logits f32[B, K].
  """

  init: Callable[[Key], Params]
  apply: Callable[[Params, Array], Array]
