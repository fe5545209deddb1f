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

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms import _gradient_inversion as inversion
from fedjax_het.algorithms import _inversion_memory as memories
from fedjax_het.algorithms._gradient_inversion import Search, Synthetic
from fedjax_het.algorithms._stale import as_delays, delayed, stale_fed_avg
from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, Model, Params


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
    return memories.init(key, params, search, members, pending)

  def correct(memory, arrivals, now, t):
    slot = slot_of[arrivals.client]  # [C], M for who is never late
    slot = jnp.where(arrivals.delay > 0, slot, members)
    memory = memories.judge(memory, arrivals, slot, t, switch_back)
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
    told = memories.latest(
      memory.figures, late, inverted=done.astype(jnp.float32)
    )
    told = memories.latest(told, done, inversion_error=error)
    memory = memories.keep(
      memory._replace(figures=told),
      jnp.where(done, slot, members),
      t,
      found,
      moved,
      arrivals.delta,
    )
    return memory, moved, jnp.ones_like(arrivals.weight)

  return delayed(
    model,
    **common,
    correct=correct,
    init_memory=init_memory,
    note=note,
    figures=memories.figures,
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
