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
rounds of the whole run.

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
from fedjax_het.algorithms._kept_values import kept_values
from fedjax_het.algorithms._lora_importance import Ramp
from fedjax_het.algorithms._rank_average import (
  Factors,
  rank_average,
  rank_mask,
)
from fedjax_het.algorithms._spine_client import (
  SpineClient,
  Training,
  spine_client,
)
from fedjax_het.algorithms._spine_server import (
  Costs,
  Told,
  arms_of,
  check_costs,
  gather,
  rewards,
)
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
    importance: "lora", "magnitude", "random" (each client draws its own) or
      "same_random" (one draw for all, so that clients agree on a structure).
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
    if importance in importances.RANDOM:
      draw = jax.random.fold_in(state.key, num_clients)
      if importance == "random":
        draw = jax.random.fold_in(draw, client_id)
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

  client = spine_client(
    Training(
      adapted,
      structure,
      ramp,
      optimizer,
      batch_size,
      epochs,
      importance,
      weigh,
      prune_every,
      skip,
      base_of,
      most,
      remakes,
    )
  )
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
