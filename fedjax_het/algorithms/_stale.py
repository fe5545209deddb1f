"""FedAvg with clients that are always some rounds late.

Client k has a fixed delay tau_k: what arrives from it in round t was trained on
the global model of round t - tau_k.  The server keeps its last tau_max + 1
models in a ring; the downlink hands a client the model of round t - tau_k (it
received it then, and its upload arrives now), so the engine needs to know
nothing of time.  Before round tau_k nothing can have arrived: what the client
does counts with weight 0.

Down: a model, 32 P bits.  Up: its change, 32 P bits.  Who sent it and what
model it started from travel with any message and are not counted.

Rounds are those in which anything arrived: a round in which the engine drops
every upload leaves the ring where it is.

Departures from the released code (github.com/pittisl/
FL-with-intertwined-heterogeneity, fixed.py): there, a block after the inversion
replaces the corrected update by the stale one, and after the switch it averages
stale *weights*, which pulls the model back to w^{t-tau}.  Here every arm
averages updates, sum_k n_k Delta_k / sum_k n_k, and adds them to w^t.

References:
  arXiv:2309.13536 (AAAI 2025), the setting; corrections: `_stale_corrections`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.algorithms._stale_corrections import Correction, Late, direct
from fedjax_het.core import wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.stack import stack
from fedjax_het.core.types import (
  Algorithm,
  Array,
  ClientData,
  Key,
  Model,
  Params,
  PyTree,
)


class StaleState(NamedTuple):
  """ring: [H, ...], the model of round r at r mod H, H = tau_max + 1.

  round: i32[], t.
  memory: what the correction keeps, `()` for nothing.
  """

  ring: Params
  round: Array
  memory: PyTree

  def model(self, delay: Array | int = 0) -> Params:
    """w^{t - delay}, for 0 <= delay <= min(tau_max, t)."""
    return jax.tree.map(
      lambda leaf: leaf[(self.round - delay) % leaf.shape[0]], self.ring
    )


class Down(NamedTuple):
  """params: what the client trains on.

  envelope: Known((client id i32[], arrives bool[], figures)): to whom the
    message goes, whether its answer can be there by now, and what the server
    says of itself; that way it gets into the records of a run.
  """

  params: Params
  envelope: wire.Known


class Up(NamedTuple):
  """delta: the change;  note: what the correction wants beside it.

  sender: Known(client id i32[]).
  """

  delta: Params
  note: PyTree
  sender: wire.Known


class Arrivals(NamedTuple):
  """The updates of a round, by client id; empty places last, all zero.

  client: i32[C];  weight: f32[C], n_k, 0 in empty places.
  delay: i32[C];  delta, base: trees of [C, ...] (see `Late`);  note: [C, ...].
  """

  client: Array
  weight: Array
  delay: Array
  delta: Params
  base: Params
  note: PyTree


# (memory, arrivals, w^t, t) -> (memory, updates [C, ...], shares f32[C])
Correct = Callable[
  [PyTree, Arrivals, Params, Array], tuple[PyTree, Params, Array]
]


def stale_fed_avg(
  model: Model,
  *,
  delays: Sequence[int] | np.ndarray,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  cohort_size: int,
  epochs: int = 1,
  correction: Correction = direct,
  server_rate: Array | float = 1.0,
) -> Algorithm:
  """w^{t+1} = w^t + eta sum_k s_k n_k Delta'_k / sum_k s_k n_k.

  Delta'_k and the share s_k are what `correction` makes of the late update.
  With all delays 0, or the correction `oracle`, this is FedAvg.

  Args:
    model: the network.
    delays: tau_k i[N], in rounds, one a client; nothing in an algorithm knows
      N, so a list that is too short goes unnoticed: its last entry is repeated.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    cohort_size: C, the most uploads of a round.
    epochs: E, local epochs per round.
    correction: what is done to a late update, see `_stale_corrections`.
    server_rate: eta.

  Returns:
    An `Algorithm`; metrics: loss.

  Raises:
    UserError: delays that are no whole numbers >= 0.
  """

  def correct(memory, arrivals, now, t):
    del t
    moved, share = jax.vmap(
      lambda delta, base, delay: correction.apply(Late(delta, base, now, delay))
    )(arrivals.delta, arrivals.base, arrivals.delay)
    return memory, moved, share

  delays = as_delays(delays)
  if correction.ignores_delays:
    delays = np.zeros_like(delays)
  return delayed(
    model,
    delays=delays,
    optimizer=optimizer,
    batch_size=batch_size,
    cohort_size=cohort_size,
    epochs=epochs,
    server_rate=server_rate,
    correct=correct,
  )


def delayed(
  model: Model,
  *,
  delays: np.ndarray,
  cohort_size: int,
  server_rate: Array | float,
  correct: Correct,
  init_memory: Callable[[Key, Params], PyTree] = lambda key, params: (),
  note: Callable[[ClientData], PyTree] = lambda data: (),
  figures: Callable[[PyTree], dict[str, Array]] = lambda memory: {},
  **of_client: Any,
) -> Algorithm:
  """`stale_fed_avg` with any correction, also one that remembers.

  Args:
    model, delays, cohort_size, server_rate: see `stale_fed_avg`.
    correct: all of a round's late updates at once.
    init_memory: (key, w^0) -> the correction's first memory.
    note: what a client tells beside its update.
    figures: memory -> f32[] each, reported among the clients' metrics.
    **of_client: of `fed_avg`.
  """
  inner = fed_avg(model, **of_client)
  size = int(delays.max()) + 1  # H
  delay_of = jnp.asarray(delays, jnp.int32)  # [N]
  reducer = stack(cohort_size)

  def init(key):
    params = inner.init(key).params
    ring = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), params
    )
    memory = init_memory(jax.random.fold_in(key, 1), params)
    return StaleState(ring, jnp.int32(0), memory)

  def downlink(state, client):
    delay = delay_of[client]
    # before round tau the answer is thrown away: any model will do
    params = state.model(jnp.minimum(delay, state.round))
    envelope = client, state.round >= delay, figures(state.memory)
    return Down(params, wire.Known(envelope, 0))

  def client(message, state, data, key):
    who, arrives, told = message.envelope.tree
    upload = inner.client(message.params, state, data, key)
    return upload._replace(
      message=Up(upload.message, note(data), wire.Known(who, 0)),
      weight=jnp.where(arrives, upload.weight, 0),
      metrics=upload.metrics | told,
    )

  def server(state, uploads):
    now = state.model()
    arrivals = _sorted(uploads, state, delay_of)
    memory, moved, share = correct(state.memory, arrivals, now, state.round)
    weight = share * arrivals.weight  # [C]
    total = jnp.sum(weight)
    weight = weight / jnp.where(total > 0, total, 1)
    # Nothing can raise here, and silently losing a client would be worse.
    weight = jnp.where(uploads.count > cohort_size, jnp.nan, weight)
    after = jax.tree.map(
      lambda w, d: w + server_rate * jnp.tensordot(weight, d, axes=(0, 0)),
      now,
      moved,
    )
    t = state.round + 1
    ring = jax.tree.map(
      lambda old, w: old.at[t % size].set(w), state.ring, after
    )
    return StaleState(ring, t, memory)

  return inner._replace(
    init=init,
    downlink=downlink,
    client=client,
    reducer=reducer,
    server=server,
    global_params=lambda state: state.model(),
  )


def as_delays(delays: Sequence[int] | np.ndarray) -> np.ndarray:
  """i64[N]: the delays as whole numbers.

  Raises:
    UserError: they are not.
  """
  values = np.asarray(delays)
  if values.ndim != 1 or not values.size:
    raise UserError(
      f"delays of shape {values.shape}: give one number of rounds a client"
    )
  if not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
    raise UserError(
      "delays are whole numbers of rounds, 0 for a client that is never late;"
      f" got {values.min()} of {values.dtype}"
    )
  return values.astype(np.int64)


def _sorted(uploads, state: StaleState, delay_of: Array) -> Arrivals:
  """Places by client id, so that chunks and devices do not show."""
  sender = uploads.messages.sender.tree
  order = jnp.argsort(jnp.where(uploads.here, sender, delay_of.shape[0]))
  message, weight, here = jax.tree.map(
    lambda leaf: leaf[order], (uploads.messages, uploads.weights, uploads.here)
  )
  client = message.sender.tree
  delay = jnp.where(here, delay_of[client], 0)
  base = jax.vmap(state.model)(delay)
  return Arrivals(client, weight, delay, message.delta, base, message.note)
