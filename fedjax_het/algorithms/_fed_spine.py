"""FedSpine: clients prune heads and channels while they train adapters.

The base is frozen.  Every round the server gives each client a pruning ratio
p_k and a rank r_k, chosen by the client's own bandit (`_arm_bandit`).  The
client trains adapters of that rank and, every so many local steps, removes the
heads and channels that matter least (`_lora_importance`), along a cubic ramp to
p_k.  The server averages adapters of unequal ranks (`_rank_average`) and tells
each bandit how it went.

Down: the adapters at rank r, 32 r sum(I + O) bits, the head, and 12 bytes: p,
r and the number of the round.  Up: adapters and head again, one bit for every
head and channel, and 16 bytes (loss drop, ratio gained, importance retained,
seconds).  Once: the base.  With average="stack" the change of the base comes
down in full instead of adapters.

Each client keeps its own structure; a ratio that falls brings units back.  The
global model is the averaged adapters on the structure that clients vote for,
as sparse as they are on average (judged="vote"), or on all units ("full"); a
client is judged with its own rank and structure.

Seconds here are a simulation: T_k = a_k work + b_k bytes (`Costs`), with the
work counted from the masks.  The engine's virtual clock knows one price of a
gradient for everybody and cannot see pruning, so this time is the metric
"seconds" of each client and nothing waits for it.

Departures.  The paper was available as an abstract and a third party's summary
only: bandit, reward (`rewards`), importance and the weights n_k (1 - p_k) are
reconstructions.  Adapters are scaled by alpha / R, R the largest rank, for all
ranks, so that a row means the same to every client.  The ramp runs over the
rounds of the whole run.  Random importance is one draw for all clients: they
agree on a structure, which makes it the stronger rival.

References:
  FedSpine: Efficient Deployment of Large Language Models on
  Resource-constrained Devices, 2025, arXiv:2501.02438.
"""

import functools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _lora_importance as importances
from fedjax_het.algorithms import _spine_structure as structures
from fedjax_het.algorithms._arm_bandit import ArmSpace
from fedjax_het.algorithms._kept_values import KeptValues, kept_values
from fedjax_het.algorithms._lora_importance import Ramp, Score
from fedjax_het.algorithms._rank_average import (
  Factors,
  rank_average,
  rank_mask,
)
from fedjax_het.algorithms._spine_server import (
  Costs,
  Report,
  Told,
  arms_of,
  check_costs,
  gather,
  rewards,
)
from fedjax_het.algorithms._spine_structure import Keep
from fedjax_het.core import local, reduce, wire
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import (
  Algorithm,
  Array,
  Key,
  Model,
  Params,
  PyTree,
  Reducer,
  Upload,
)
from fedjax_het.models.lora import adapt

WEIGHTS = ("density", "retained", "examples")
JUDGED = ("vote", "full")


class FedSpineState(NamedTuple):
  """frozen: the base;  factors: the adapters;  full: what is trained whole.

  keep: f32[N, G], the structure that each client reported last.
  arms: the bandits' state;  key: of their draws;  round: i32[], rounds done.
  """

  frozen: Params
  factors: Factors
  full: Params
  keep: Array
  arms: PyTree
  key: Key
  round: Array


class SpineClient(NamedTuple):
  """score: running importance;  keep: structure;  steps: i32[], local ones."""

  score: Score
  keep: Keep
  steps: Array


class News(NamedTuple):
  """What travels up; the note of the adapters is the structure."""

  client: wire.Known
  adapters: KeptValues
  full: Params
  report: Report


class _Local(NamedTuple):
  """What the loop over local steps carries; only `trained` has a gradient.

  early, late: f32[], sums of the losses of the first and the second half.
  work: f32[], of the steps, in steps of the whole network at the largest rank.
  retained: f32[], see `_lora_importance.retained`, over all cuts.
  """

  trained: Params
  client: SpineClient
  early: Array
  late: Array
  work: Array
  retained: Array


def fed_spine(
  model: Model,
  arms: ArmSpace | Sequence[tuple[float, int]],
  costs: Costs,
  ramp: Ramp,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  heads: int | None = None,
  targets: Sequence[str] = ("q", "k", "v", "o", "up", "down"),
  full: Sequence[str] = ("head",),
  alpha: float = 16.0,
  importance: str = "lora",
  average: str = "count",
  weigh: str = "density",
  judged: str = "vote",
  prune_every: int = 20,
  skip: Collection[int] = (),
  progress: float = 1.0,
  delay: float = 1.0,
  max_rank: int | None = None,
  cohort_size: int | None = None,
) -> Algorithm:
  """Federated adapters under structured pruning, by devices.

  A client is of weight n_k (1 - p_k) with p_k its share of removed units
  ("density"), n_k times its retained importance ("retained"), or n_k.

  Args:
    model: a transformer, or a chain of dense layers; its `init` may pretrain.
    arms: what bandits choose from; or fixed (ratio, rank), client k has
      arms[k % len(arms)]: one pair for a uniform configuration, ratios 0 and
      several ranks for HetLoRA.
    costs: of the N clients.
    ramp: when the ratio is reached.
    optimizer: of adapters and head, made afresh every round; without weight
      decay of its own on zeros (a row beyond the rank stays zero).
    batch_size: B;  epochs: E, local epochs per round.
    heads: of each layer, for a transformer.
    targets, full, alpha: see `models.lora.adapt`.
    importance: "lora", "magnitude" or "random".
    average: "count", "product" or "stack".
    weigh: "density", "retained" or "examples".
    judged: "vote" or "full", the structure of the global model.
    prune_every: local steps between cuts, counted over rounds.
    skip: layers of which nothing is removed, e.g. (0, -1).
    progress, delay: kappa and mu of the reward.
    max_rank: R, so that arms of other ranks compare; default: the largest.
    cohort_size: C, for "stack".

  Returns:
    An `Algorithm`; metrics: loss, drop, ratio, rank, sparsity, retained,
    seconds, and kept/<group>, the share of each group's units.

  Raises:
    UserError: an unknown option, arms, a ramp or costs that make no sense, a
      network without units, or targets that it does not have.
  """
  for kind, value, known in (
    ("importance", importance, importances.IMPORTANCES),
    ("weighting", weigh, WEIGHTS),
    ("structure to judge", judged, JUDGED),
  ):
    if value not in known:
      raise unknown(kind, value, known)
  if prune_every < 1:
    raise UserError(f"prune_every {prune_every}: give 1 or more local steps")
  importances.check_ramp(ramp)
  num_clients = check_costs(costs)
  policy = arms_of(arms, num_clients)
  largest = policy.max_rank if max_rank is None else max_rank
  if largest < policy.max_rank:
    raise UserError(
      f"max_rank {max_rank} below a rank of {policy.max_rank}: give that, or "
      "more"
    )
  adapted = adapt(model, rank=largest, targets=targets, full=full, alpha=alpha)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  _, trained_shapes = jax.eval_shape(adapted.init, jax.random.key(0))
  structure = structures.structure_of(
    shapes, tuple(trained_shapes["lora"]), heads
  )
  averaging = rank_average(average, cohort_size)
  remakes = average == "stack"
  of_full = reduce.weighted_mean()
  of_reports = gather(num_clients, structure.size)
  whole = structures.everything(structure)
  most = structures.work(structure, whole, largest)

  def base_of(frozen, moved):
    """The base, with what "stack" has added to it."""
    if not remakes:
      return frozen
    scale = alpha / largest
    own = {f"{n}/kernel": scale * change for n, change in moved.items()}
    return frozen | {name: frozen[name] + own[name] for name in own}

  def pruned(make, base, trained, keep):
    return structure.put(make(base, trained), keep)

  def init(key):
    model_key, arm_key = jax.random.split(key)
    frozen, trained = adapted.init(model_key)
    return FedSpineState(
      frozen,
      averaging.start(trained["lora"]),
      trained["full"],
      jnp.ones((num_clients, structure.size)),
      policy.start(arm_key),
      arm_key,
      jnp.int32(0),
    )

  def send(state, client_id):
    ratio, rank = policy.arm(state.arms, client_id)
    chance = ()
    if importance == "random":
      draw = jax.random.fold_in(state.key, num_clients)
      chance = importances.random_score(structure, draw)
    known = (
      client_id,
      state.frozen,
      (costs.step_seconds[client_id], costs.byte_seconds[client_id]),
      chance,
    )
    lora = state.factors.adapters
    if remakes:  # the first A, and B = 0: known to all since the start
      adapters = wire.Known(lora, setup_bytes=0)
    else:
      adapters = kept_values(lora, rank_mask(lora, rank))
    base_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(state.frozen))
    return Told(
      wire.Known(known, setup_bytes=base_bytes),
      ratio,
      rank,
      state.round,
      adapters,
      state.factors.moved,
      state.full,
    )

  def client(message, kept, data, key):
    number, frozen, (step_seconds, byte_seconds), chance = message.known.tree
    base = base_of(frozen, message.moved)
    lora = message.adapters.tree if remakes else message.adapters.values
    mask = rank_mask(lora, message.rank)
    lora = jax.tree.map(lambda m, v: jnp.where(m, v, 0), mask, lora)
    steps = local_steps(data.count, data.budget)
    half = steps // 2

    def loss(trained, keep, batch, key):
      seen = pruned(adapted.join, base, trained, keep)
      return local.cross_entropy(model)(seen, batch, key)

    def prune(carry, grads):
      own, trained = carry.client, carry.trained
      if importance == "random":
        new = chance
      else:
        merged = adapted.merge(base, trained)
        if importance == "lora":
          new = importances.lora_score(
            structure, merged, trained["lora"], grads["lora"]
          )
        else:
          new = importances.magnitude_score(structure, merged, trained["lora"])
      score = importances.running(own.score, new)
      done = (own.steps - kept.steps).astype(jnp.float32)
      part = done / jnp.maximum(steps, 1).astype(jnp.float32)
      ratio = message.ratio * ramp.at(message.round.astype(jnp.float32) + part)
      keep = importances.cut(structure, score, own.keep, ratio, skip)
      share = importances.retained(score, own.keep, keep)
      return carry._replace(
        client=SpineClient(score, keep, own.steps),
        retained=carry.retained * share,
      )

    def step(carry, batch, key):
      own = carry.client
      value, grads = jax.value_and_grad(loss)(
        carry.trained, own.keep, batch, key
      )
      t = own.steps - kept.steps
      new = carry._replace(
        client=own._replace(steps=own.steps + 1),
        early=carry.early + jnp.where(t < half, value, 0),
        late=carry.late + jnp.where(t >= steps - half, value, 0),
        work=carry.work
        + structures.work(structure, own.keep, message.rank.astype(jnp.float32))
        / most,
      )
      new = jax.lax.cond(
        new.client.steps % prune_every == 0,
        prune,
        lambda carry, grads: carry,
        new,
        grads,
      )
      return value, optax.tree.sub(new, carry)._replace(trained=grads)

    zero = jnp.float32(0)
    start = _Local(
      {"lora": lora, "full": message.full},
      kept,
      early=zero,
      late=zero,
      work=zero,
      retained=jnp.float32(1),
    )
    result = local.follow(
      step,
      start,
      data,
      key,
      optimizer=_carrying(optimizer),
      batch_size=batch_size,
      epochs=epochs,
    )
    end = result.params
    bits = structures.flat(structure, end.client.keep) > 0
    drop = (end.early - end.late) / jnp.maximum(half, 1).astype(jnp.float32)
    sparsity = structures.sparsity(end.client.keep)
    news = News(
      wire.Known(number, setup_bytes=0),
      kept_values(end.trained["lora"], mask, bits),
      end.trained["full"],
      Report(
        drop,
        sparsity - structures.sparsity(kept.keep),
        end.retained,
        seconds=zero,
      ),
    )
    sent = wire.nbytes(news) + wire.nbytes(message)
    seconds = step_seconds * end.work
    seconds = seconds + byte_seconds * jnp.asarray(sent).astype(jnp.float32)
    news = news._replace(report=news.report._replace(seconds=seconds))
    weight = data.count.astype(jnp.float32)
    if weigh == "density":
      weight = weight * jnp.maximum(1 - sparsity, 1e-3)
    elif weigh == "retained":
      weight = weight * jnp.maximum(end.retained, 1e-3)
    metrics = {
      "loss": result.loss,
      "drop": drop,
      "ratio": message.ratio,
      "rank": message.rank.astype(jnp.float32),
      "sparsity": sparsity,
      "retained": end.retained,
      "seconds": seconds,
    } | {f"kept/{name}": jnp.mean(k) for name, k in end.client.keep.items()}
    return Upload(news, weight, end.client, metrics, result.ok)

  reducer = _side_by_side(averaging.reducer, of_full, of_reports)

  def server(state, reduced):
    factors, full, (took, report, keep) = reduced
    took = took > 0
    value = rewards(report, took, progress=progress, delay=delay)
    return state._replace(
      factors=averaging.finish(state.factors, factors),
      full=full,
      keep=jnp.where(took[:, None], keep, state.keep),
      arms=policy.update(state.arms, value, took, state.key),
      round=state.round + 1,
    )

  def voted(state):
    votes = structures.unflat(structure, jnp.mean(state.keep, 0))
    each = jax.vmap(
      lambda bits: structures.sparsity(structures.unflat(structure, bits))
    )(state.keep)
    return importances.cut(structure, votes, whole, jnp.mean(each), skip)

  def of_server(state):
    base = base_of(state.frozen, state.factors.moved)
    return base, {"lora": state.factors.adapters, "full": state.full}

  def of_everybody(state):
    base, trained = of_server(state)
    keep = voted(state) if judged == "vote" else whole
    return pruned(adapted.merge, base, trained, keep)

  def of_one(state, kept, client_id):
    base, trained = of_server(state)
    _, rank = policy.arm(state.arms, client_id)
    lora = trained["lora"]
    lora = jax.tree.map(
      lambda m, v: jnp.where(m, v, 0), rank_mask(lora, rank), lora
    )
    return pruned(adapted.join, base, trained | {"lora": lora}, kept.keep)

  local_steps = functools.partial(
    local.num_steps, batch_size=batch_size, epochs=epochs
  )
  return Algorithm(
    init=init,
    downlink=send,
    client=client,
    reducer=reducer,
    server=server,
    global_params=of_everybody,
    local_steps=local_steps,
    init_client=lambda key: SpineClient(
      jax.tree.map(jnp.zeros_like, whole), whole, jnp.int32(0)
    ),
    predict=of_one,
  )


def _carrying(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """The optimiser for `trained`; the rest moves by what the step says."""

  def update(grads, state, params):
    moves, state = optimizer.update(grads.trained, state, params.trained)
    return grads._replace(trained=moves), state

  return optax.GradientTransformation(
    lambda params: optimizer.init(params.trained), update
  )


def _side_by_side(adapters: Reducer, full: Reducer, reports: Reducer):
  """One reducer for each part of `News`."""

  def parts(news):
    return (
      (adapters, news.adapters),
      (full, news.full),
      (reports, (news.client.tree, news.report, news.adapters.note)),
    )

  three = (adapters, full, reports)
  return Reducer(
    zero=lambda news: tuple(r.zero(part) for r, part in parts(news)),
    add=lambda acc, news, weights: tuple(
      r.add(a, part, weights)
      for a, (r, part) in zip(acc, parts(news), strict=True)
    ),
    merge=lambda a, b: tuple(
      r.merge(*pair) for r, *pair in zip(three, a, b, strict=True)
    ),
    finish=lambda acc: tuple(
      r.finish(a) for r, a in zip(three, acc, strict=True)
    ),
  )
