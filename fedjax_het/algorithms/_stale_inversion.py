"""Unlimited staleness: late updates are redone from data the server makes up.

THIS IS A DATA-RECONSTRUCTION ATTACK ON THE LATE CLIENTS.  From a late update
the server finds inputs and labels whose training explains it
(`_gradient_inversion`), and trains today's model on them: w^_k = L(w^t; D_rec).
It ends up holding inputs that may resemble a client's (one example and a linear
model: the example itself) and a good idea of the client's labels.  Use it where
clients agreed to that, or to study it; docs/staleness.md says what stops it.

Down: a model, 32 P bits.  Up: its change and how many steps it did,
32 P + 32 bits.  What is remembered never leaves the server.

The inversion helps while the model changes fast and hurts later, when what is
late is nearly right.  So the server switches back, by what it can know: when
client k's update from w^s arrives in round s + tau_k, that is the truth for the
estimate that the server used for k in round s.  With that estimate's relative
L1 error E1 and the error E2 that the raw late update of round s had, client k
goes back to plain late updates for good as soon as E1 > E2.  Our choice: per
client, because what one client's data look like says little of another's.

The truth comes only if the client takes part in rounds s and s + tau_k both:
with cyclic selection tau_k must be a multiple of the cycle's N / C rounds.  For
a client of which no truth ever comes, nothing is judged and the inversion goes
on; the metric `judged` says so.

Departures from the released code (github.com/pittisl/
FL-with-intertwined-heterogeneity): its switch knows the true fresh update of
the same round, which no server has, compares with the wrong sign in one file
(E1 < E2) and by another rule in the other (E2 < 0.9 E1), and its inverted
update is overwritten by the stale one before it is used.  None of that is so
here.

Cost: `search.iterations` passes of E forward and backward steps on S rows for
each late upload, nothing for a fresh one (under vmap, e.g. many seeds at once
on an accelerator, every place of the stack pays).  Memory at the server:
(tau_max + 1) P + 2 M Q P floats for M late clients.

References:
  arXiv:2309.13536 (AAAI 2025).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms import _gradient_inversion as inversion
from fedjax_het.algorithms._gradient_inversion import Search, Synthetic
from fedjax_het.algorithms._stale import (
  Arrivals,
  as_delays,
  delayed,
  stale_fed_avg,
)
from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, Key, Model, Params

_FIGURES = "inverted", "inversion_error", "e1", "e2", "cosine1", "cosine2"


class Memory(NamedTuple):
  """What the server remembers of its M late clients.

  key: of random starts.
  start: [M, S, ...], the last D_rec;  seen: bool[M], whether there is one.
  round: i32[M, Q], rounds of the estimates that await their truth, or -1.
  inverted, late: trees of [M, Q, ...], the estimate and the raw late update.
  count: i32[M], estimates made.
  off: bool[M], switched back.
  judged: bool[M], whether a truth ever came.
  figures: f32[] each, see `inverted_fed_avg`.
  """

  key: Key
  start: Synthetic
  seen: Array
  round: Array
  inverted: Params
  late: Params
  count: Array
  off: Array
  judged: Array
  figures: dict[str, Array]


def inverted_fed_avg(
  model: Model,
  *,
  delays: Sequence[int] | np.ndarray,
  rate: Array | float,
  batch_size: int,
  cohort_size: int,
  search: Search,
  epochs: int = 5,
  switch_back: bool = True,
  warm_start: bool = True,
  pending: int | None = None,
  server_rate: Array | float = 1.0,
) -> Algorithm:
  """FedAvg in which late updates are estimated afresh by gradient inversion.

  Clients do E steps of plain SGD on all their data at once: the server must be
  able to repeat it, so there is no optimiser to choose.

  Args:
    model: the network.
    delays: tau_k i[N], in rounds; without any late client this is FedAvg.
    rate: of the clients' SGD.
    batch_size: at least what the largest client holds.
    cohort_size: C, the most uploads of a round.
    search: how D_rec is sought.
    epochs: E, full-batch steps.
    switch_back: False inverts to the end.
    warm_start: the search starts from the client's last D_rec.
    pending: Q, estimates of a client that may await their truth; the oldest is
      forgotten.  Default tau_max, always enough; with cyclic selection
      ceil(tau_max C / N) is.
    server_rate: eta.

  Returns:
    An `Algorithm`; an inversion that diverges is not used, the late update is.
      Metrics: loss, and of the server before the round:
      inverted: of the last late updates, the share that was inverted;
      inversion_error: their mean relative L1 distance between the update of
        D_rec and the one that came;
      e1, e2: of the last estimates whose truth came, the mean relative L1
        errors of the estimate and of the raw late update;  cosine1, cosine2:
        their cosines with the truth;
      judged, switched: shares of the late clients for whom a truth ever came,
        and that went back to plain late updates.
      All are 0 before there is anything to say.

  Raises:
    UserError: a search or delays that make no sense; when it is traced, clients
      that hold more than one batch.
  """
  inversion.check_search(search)
  delays = as_delays(delays)
  program = inversion.full_batch_sgd(model, rate=rate, epochs=epochs)
  common = {
    "delays": delays,
    "optimizer": optax.sgd(rate),
    "batch_size": batch_size,
    "cohort_size": cohort_size,
    "epochs": epochs,
    "server_rate": server_rate,
  }
  slot_of, members = _slots(delays)
  if not members:
    return stale_fed_avg(model, **common)
  pending = int(delays.max()) if pending is None else pending
  if pending < 1:
    raise UserError(f"pending={pending}: remember at least one estimate")

  def note(data):
    if data.index.shape[0] > batch_size:
      raise UserError(
        f"clients hold up to {data.index.shape[0]} examples and a batch "
        f"{batch_size}: the inversion needs one batch of everything, give "
        f"batch_size >= {data.index.shape[0]}"
      )
    return jnp.minimum(epochs, data.budget)  # local steps

  def init_memory(key, params):
    def of_each(*shape):
      return jax.tree.map(
        lambda leaf: jnp.zeros((members, *shape, *leaf.shape), leaf.dtype),
        params,
      )

    start = jax.tree.map(
      lambda leaf: jnp.zeros((members, *leaf.shape), leaf.dtype),
      jax.eval_shape(lambda: inversion.draw(search, jax.random.key(0))),
    )
    no = jnp.zeros(members, bool)
    return Memory(
      key=key,
      start=start,
      seen=no,
      round=jnp.full((members, pending), -1, jnp.int32),
      inverted=of_each(pending),
      late=of_each(pending),
      count=jnp.zeros(members, jnp.int32),
      off=no,
      judged=no,
      figures=dict.fromkeys(_FIGURES, jnp.float32(0)),
    )

  def correct(memory, arrivals, now, t):
    slot = slot_of[arrivals.client]  # [C], M for who is never late
    slot = jnp.where(arrivals.delay > 0, slot, members)
    memory = _judge(memory, arrivals, slot, t, switch_back)
    mine = jnp.minimum(slot, members - 1)
    late = slot < members
    todo = late & ~memory.off[mine] & (arrivals.note > 0)

    def redo(one):
      m, client, delta, base, steps, _ = one
      key = jax.random.fold_in(jax.random.fold_in(memory.key, t), client)
      fresh = inversion.draw(search, key)
      start = jax.tree.map(
        lambda old, new: jnp.where(memory.seen[m] & warm_start, old[m], new),
        memory.start,
        fresh,
      )
      redone = estimate(program, search, base, delta, now, steps, start)
      # A search that diverged must not reach the model, nor the next start.
      usable = local.all_finite(redone)
      return jax.tree.map(
        lambda new, old: jnp.where(usable, new, old), redone, leave(one)[0]
      ), usable

    def leave(one):
      m, _, delta, *_ = one
      kept = jax.tree.map(lambda leaf: leaf[m], memory.start)
      return (delta, kept, jnp.float32(0)), jnp.bool_(False)

    # One place after another: a fresh upload costs no inversion.
    (moved, found, error), done = jax.lax.map(
      lambda one: jax.lax.cond(one[-1], redo, leave, one),
      (
        mine,
        arrivals.client,
        arrivals.delta,
        arrivals.base,
        arrivals.note,
        todo,
      ),
    )
    told = _latest(memory.figures, late, inverted=done.astype(jnp.float32))
    told = _latest(told, done, inversion_error=error)
    memory = _keep(
      memory._replace(figures=told),
      jnp.where(done, slot, members),
      t,
      found,
      moved,
      arrivals.delta,
    )
    return memory, moved, jnp.ones_like(arrivals.weight)

  def figures(memory):
    return memory.figures | {
      "judged": jnp.mean(memory.judged.astype(jnp.float32)),
      "switched": jnp.mean(memory.off.astype(jnp.float32)),
    }

  return delayed(
    model,
    **common,
    correct=correct,
    init_memory=init_memory,
    note=note,
    figures=figures,
  )


def estimate(
  program: inversion.Program,
  search: Search,
  base: Params,
  delta: Params,
  now: Params,
  steps: Array,
  start: Synthetic,
) -> tuple[Params, Synthetic, Array]:
  """What a client would send today, from what it sent of `base`.

  Args:
    program, search, base, delta, steps, start: of `invert`.
    now: w^t.

  Returns:
    (L(w^t; D_rec) - w^t, D_rec, the inversion's relative error f32[]).
  """
  found, error = inversion.invert(program, search, base, delta, steps, start)
  redone = program(now, found, steps)
  return jax.tree.map(lambda a, b: a - b, redone, now), found, error


def _slots(delays: np.ndarray) -> tuple[Array, int]:
  """(i32[N] -> place among the late clients, M for others;  M)."""
  late = delays > 0
  members = int(late.sum())
  slot = np.where(late, np.cumsum(late) - 1, members)
  return jnp.asarray(slot, jnp.int32), members


def _judge(
  memory: Memory, arrivals: Arrivals, slot: Array, t: Array, switch_back: bool
) -> Memory:
  """Compares old estimates with what has now arrived for their round."""
  members = memory.seen.shape[0]
  mine = jnp.minimum(slot, members - 1)
  asked = memory.round[mine] == (t - arrivals.delay)[:, None]  # [C, Q]
  known = (slot < members) & asked.any(axis=1)
  place = jnp.argmax(asked, axis=1)

  def against(compare, estimates):
    then = jax.tree.map(lambda leaf: leaf[mine, place], estimates)
    return jax.vmap(compare)(then, arrivals.delta)

  e1 = against(inversion.relative_error, memory.inverted)
  e2 = against(inversion.relative_error, memory.late)
  told = _latest(
    memory.figures,
    known,
    e1=e1,
    e2=e2,
    cosine1=against(_cosine, memory.inverted),
    cosine2=against(_cosine, memory.late),
  )
  target = jnp.where(known, slot, members)
  worse = jnp.where(known & (e1 > e2) & switch_back, slot, members)
  return memory._replace(
    figures=told,
    judged=memory.judged.at[target].set(True, mode="drop"),
    off=memory.off.at[worse].set(True, mode="drop"),
  )


def _keep(
  memory: Memory,
  target: Array,
  t: Array,
  found: Synthetic,
  moved: Params,
  late: Params,
) -> Memory:
  """Remembers the estimates of round t, until their truth comes.

  Args:
    target: i32[C], place among the late clients, M for no estimate.
    found: D_rec [C, ...];  moved, late: trees of [C, ...].
  """
  members, pending = memory.round.shape
  place = memory.count[jnp.minimum(target, members - 1)] % pending

  def put(old, new):
    return old.at[target].set(new, mode="drop")

  def add(old, new):
    return old.at[target, place].set(new, mode="drop")

  return memory._replace(
    start=jax.tree.map(put, memory.start, found),
    seen=put(memory.seen, True),
    round=add(memory.round, t),
    inverted=jax.tree.map(add, memory.inverted, moved),
    late=jax.tree.map(add, memory.late, late),
    count=memory.count.at[target].add(1, mode="drop"),
  )


def _latest(
  figures: dict[str, Array], real: Array, **values: Array
) -> dict[str, Array]:
  """`figures` with the mean of each f32[C] over `real`, if there is any."""
  share = real.astype(jnp.float32) / jnp.maximum(jnp.sum(real), 1).astype(
    jnp.float32
  )
  some = jnp.any(real)
  return figures | {
    name: jnp.where(some, jnp.sum(share * value), figures[name])
    for name, value in values.items()
  }


def _cosine(a: Params, b: Params) -> Array:
  """f32[]: between two trees; 0 if one is zero."""
  dot = optax.tree.vdot(a, b)
  size = optax.tree.norm(a) * optax.tree.norm(b)
  return jnp.where(size > 0, dot / jnp.where(size > 0, size, 1), 0)
