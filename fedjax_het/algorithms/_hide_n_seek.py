"""HideNseek: frozen pruned weights, clients train only their signs.

The server prunes a random network once (SynFlow, no data) and rescales what is
left; the surviving weights never change.  Clients train a float score per
surviving weight, straight through sgn(), and upload one bit each.

Up: nz bits, nz = round(d P).  Down: the mean sign, 32 nz bits ("mean"), its
exact integer form, ceil(log2(C + 1)) nz bits ("count"), or the majority, nz
bits ("vote").  Once: the 64-bit seed from which everybody rebuilds weights and
mask.

Departures from the paper, whose full text was not available: the downlink, the
anchor of the scores, the rescaling by 1 / sqrt(d_l) and the 100 steps of
SynFlow are our choices (BUILD_NOTES.md).  `values=(0, 1)` is the {0, 1}
supermask on the same weights with the same uplink, the paper's own comparison.

References:
  Hide and Seek: Efficient and private federated learning with sign supermasks
  (HideNseek), 2022, arXiv:2206.04385.
  Zhou et al.: Deconstructing Lottery Tickets, 2019, arXiv:1905.01067.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import local, wire
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Algorithm, Array, Model, Params, Upload
from fedjax_het.masks import budgets, sign, tree, votes
from fedjax_het.masks.at_init import Pruning
from fedjax_het.masks.support import Support, support_of

_FORWARD = {(-1, 1): sign.sign_ste, (0, 1): sign.step_ste}
DOWNLINKS = ("mean", "count", "vote")


class HideNSeekState(NamedTuple):
  """weights: frozen, pruned, rescaled;  support: where the survivors are.

  mean: f32[nz], the mean sign that clients sent last;  voters: f32[], the
  weight behind it.
  """

  weights: Params
  support: Support
  mean: Array
  voters: Array


def hide_n_seek(
  model: Model,
  pruning: Pruning,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 5,
  anchor: float = 1.0,
  values: tuple[int, int] = (-1, 1),
  downlink: str = "mean",
  cohort_size: int | None = None,
  personal: bool = False,
) -> Algorithm:
  """Trains a sign supermask on frozen weights.

  With theta the frozen weights and sbar the broadcast mean sign, a client
  starts at s = c sbar, descends on loss(theta * sgn(s)) with d sgn/ds := 1, and
  sends sgn(s); the server sets sbar = sum_k n_k sgn(s_k) / sum_k n_k.

  A sign can flip only if rate x local steps exceeds the anchor c with Adam; a
  rule of thumb is 1.2 to 3 times c.

  Args:
    model: the network; biases stay as they are initialised.
    pruning: chooses the mask, `masks.prune_at_init`.
    optimizer: of the scores, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.
    anchor: c, the scale of the broadcast mean as a start of the scores.
    values: (-1, 1) for signs, (0, 1) for a mask.
    downlink: "mean", "count" or "vote".
    cohort_size: C, needed by "count", which gives every client one vote.
    personal: clients keep their own last signs and are evaluated with them.

  Returns:
    An `Algorithm`; metrics: loss, flipped (share of the signs sent that differ
    from the sign of the mean received).

  Raises:
    UserError: unknown `downlink` or `values`, or "count" without its cohort.
  """
  if downlink not in DOWNLINKS:
    raise unknown("downlink", downlink, DOWNLINKS)
  if tuple(values) not in _FORWARD:
    raise UserError(f"values {values}: choose (-1, 1) or (0, 1)")
  if downlink == "count" and cohort_size is None:
    raise UserError("downlink 'count' needs cohort_size to size its integers")
  forward = _FORWARD[tuple(values)]
  cross_entropy = local.cross_entropy(model)

  def masked(weights, scores):
    """The network that dense scores f32[P] select."""
    return tree.unravel(tree.ravel(weights) * forward(scores), weights)

  def init(key):
    params_key, prune_key = jax.random.split(key)
    params = model.init(params_key)
    mask = pruning.mask(prune_key, params)
    support = support_of(mask, budgets.surviving(params, pruning.density))
    mean = jnp.ones(support.index.shape)  # round 0 starts from theta itself
    weights = sign.rescale_kept(params, mask)
    return HideNSeekState(weights, support, mean, jnp.float32(0))

  def send(state, client_id):
    del client_id
    seed = wire.Known((state.weights, state.support), setup_bytes=8)
    if downlink == "mean":
      return seed, state.mean
    if downlink == "vote":
      return seed, votes.pack(state.mean)
    ones = jnp.round((state.mean + 1) * state.voters / 2).astype(jnp.int32)
    return seed, (votes.Counts(ones, cohort_size), state.voters)

  def receive(message):
    if downlink == "mean":
      return message
    if downlink == "vote":
      return message.unpack()
    counts, voters = message
    mean = 2 * counts.values.astype(jnp.float32) / jnp.maximum(voters, 1) - 1
    return jnp.where(voters > 0, mean, 1.0)

  def client(message, state, data, key):
    seed, news = message
    weights, support = seed.tree
    start = anchor * receive(news)
    zeros = jnp.zeros(tree.num_maskable(weights))
    result = local.train(
      lambda s, batch, key: cross_entropy(masked(weights, s), batch, key),
      zeros.at[support.index].set(start, indices_are_sorted=True),
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    scores = result.params[support.index]
    signs = votes.pack(scores)
    flipped = jnp.mean((scores >= 0) != (start >= 0), dtype=jnp.float32)
    one_vote = downlink == "count"
    weight = jnp.float32(1) if one_vote else data.count.astype(jnp.float32)
    kept = signs if personal else ()
    metrics = {"loss": result.loss, "flipped": flipped}
    return Upload(signs, weight, kept, metrics, result.ok)

  def server(state, reduced):
    mean, voters = reduced
    return state._replace(mean=mean, voters=voters)

  def with_signs(state, values):
    zeros = jnp.zeros(tree.num_maskable(state.weights))
    return masked(state.weights, zeros.at[state.support.index].set(values))

  def init_client(key):
    shapes = jax.eval_shape(model.init, key)
    return votes.pack(jnp.ones(budgets.surviving(shapes, pruning.density)))

  return Algorithm(
    init=init,
    downlink=send,
    client=client,
    reducer=votes.sign_mean(),
    server=server,
    global_params=lambda state: with_signs(state, state.mean),
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
    init_client=init_client if personal else lambda key: (),
    predict=(
      (lambda state, signs, client_id: with_signs(state, signs.unpack()))
      if personal
      else None
    ),
  )
