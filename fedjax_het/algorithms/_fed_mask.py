"""FedMask: each client masks its own part of frozen weights.

A client prunes once, by its own data; from then on it trains a score per weight
of the part that it retained, uses the weights whose score reaches a threshold,
and sends one bit for each.  The server averages each bit over the clients that
retain that weight; a weight that one client alone retains stays its own affair.

Up: nz_k bits, one a retained weight; the first time also their positions, 4
bytes and at most P_l bits a layer.  Down: the averages of the client's part, 32
nz_k bits ("mean"), or their majority, nz_k bits ("vote"); nothing before it
pruned.  Once: the 64-bit seed of the weights, or all of given `weights`.  A
client keeps its part and its last mask, 2 P bits; the server N P bits, who
retains what.

The paper's text was not available.  From its abstract: frozen weights, sparse
binary masks of one bit a parameter, nothing else travels, every device ends
with a structured sparse model of its own.  From a re-implementation by others:
one pruning, by scores, to a share of each layer; averages where masks overlap;
a float average sent back as the score to start from; a threshold in the middle.
Ours [design]:
- "mean" by default, as the re-implementation has it; "vote" is the abstract's
  letter, only bits both ways.
- What is pruned: the lowest -w dL/dw, the way that scores would go from an open
  mask, over all the client's data and before training.  That pass is within no
  budget, and the virtual clock does not charge it.
- Every layer has the same density.  `structured` keeps whole units, as the
  abstract has it; the default does not, because it could not know which layer
  makes the logits and must stay `whole`.
- All layers are masked, biases stay as they start, nothing is rescaled.
- Scores start at 1, later at what the server sends; a client keeps none.
- Averages are weighted by examples, over those of this round's cohort that
  retain the weight; without any, the last average stays.
- A client that never trained is judged with the server's averages.

References:
  Li et al.: FedMask: Joint Computation and Communication-Efficient Personalized
  Federated Learning via Heterogeneous Masking, SenSys 2021,
  doi:10.1145/3485730.3485929.
"""

import functools
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import fedjax_het_kernels as kernels
from fedjax_het.algorithms._overlapping_masks import MaskMessage, overlap
from fedjax_het.core import local, wire
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Algorithm, Array, Model, Params, Upload
from fedjax_het.masks import budgets, prune_grow, sign, tree, units
from fedjax_het.masks.kept_bits import KeptBits
from fedjax_het.masks.sparse_wire import MaskNews, SparseValues, layer_sizes

MASK_DOWNLINKS = ("mean", "vote")


class FedMaskState(NamedTuple):
  """weights: frozen;  mean: f32[P], of the bits that holders sent last.

  parts: u32[N, W], what each client retains, no bit before it pruned.
  """

  weights: Params
  mean: Array
  parts: Array


class Own(NamedTuple):
  """What a client keeps, no bit before it pruned.

  part: u32[W], the weights it retained;  mask: u32[W], those it uses.
  """

  part: Array
  mask: Array


def fed_mask(
  model: Model,
  *,
  optimizer: optax.GradientTransformation,
  num_clients: int,
  batch_size: int,
  epochs: int = 1,
  density: float = 0.5,
  threshold: float = 0.5,
  downlink: str = "mean",
  structured: bool = False,
  whole: Collection[str] = (),
  weights: Params | None = None,
) -> Algorithm:
  """Trains personal {0, 1} masks on frozen weights.

  With theta the frozen weights, p_k what client k retains and m the broadcast
  averages, it starts at s = m (1 if it just pruned), descends on
  loss(theta * p_k * 1[s >= tau]) with d 1[s >= tau] / ds := 1, and sends
  b_k = 1[s >= tau] where p_k is 1; the server sets
  m = sum_k n_k p_k b_k / sum_k n_k p_k where that is no 0 / 0.

  A bit on which all agree flips only if rate x local steps exceeds 1 - tau
  (on to off) or tau (off to on) with Adam.

  Args:
    model: the network; biases stay as they are.
    optimizer: of the scores, made afresh every round.
    num_clients: N; the server remembers what each retains.
    batch_size: B.
    epochs: E, local epochs per round.
    density: share of the weights of each layer that a client retains, of its
      units if `structured`.
    threshold: tau in (0, 1]; may be traced.
    downlink: "mean" or "vote", 1[m >= tau].
    structured: retains whole output units, see `masks.units`.
    whole: names of layers that keep all their units, with `structured`.
    weights: what to freeze, e.g. pretrained; None draws them from the seed.

  Returns:
    An `Algorithm`; metrics: loss, density (share of the weights that the client
    uses).  Its global model is one that nobody uses: judge by
    `client_accuracy`.

  Raises:
    UserError: unknown `downlink` or layer, a density that leaves nothing,
      `whole` without `structured`, weights of another model.
  """
  if downlink not in MASK_DOWNLINKS:
    raise unknown("downlink", downlink, MASK_DOWNLINKS)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  retain = _pruning(shapes, density, structured, whole)
  setup_bytes = 8 if weights is None else _nbytes(weights, shapes)
  sizes = layer_sizes(shapes)
  total = sum(sizes)
  cross_entropy = local.cross_entropy(model)

  def masked(weights, mask):
    return tree.unravel(tree.ravel(weights) * mask, weights)

  def init(key):
    start = weights
    if weights is None:
      start = model.init(jax.random.split(key)[0])
    parts = jnp.zeros((num_clients, kernels.num_words(total)), jnp.uint32)
    return FedMaskState(start, jnp.ones(total), parts)

  def send(state, client_id):
    part = kernels.unpack_bits(state.parts[client_id], total)
    if downlink == "mean":
      mean = jnp.where(part, state.mean, 0.0)
      news = SparseValues(mean, part, jnp.bool_(False), sizes)
    else:
      news = KeptBits(part & (state.mean >= threshold), part)
    return wire.Known((client_id, state.weights), setup_bytes), news

  def client(message, own, data, key):
    known, news = message
    client_id, weights = known.tree
    prune_key, train_key = jax.random.split(key)
    pruned = _any(own.part)

    def loss(part):
      return lambda s, batch, key: cross_entropy(
        masked(weights, sign.step_ste(s - threshold) * part), batch, key
      )

    # the loop has no step for those who pruned before
    gradient = local.mean_gradient(
      loss(1.0),
      jnp.ones(total),
      data._replace(budget=jnp.where(pruned, 0, data.budget)),
      prune_key,
      batch_size=batch_size,
    )
    part = jnp.where(
      pruned, kernels.unpack_bits(own.part, total), retain(-gradient)
    )
    received = news.values if downlink == "mean" else news.bits
    result = local.train(
      loss(part.astype(jnp.float32)),
      jnp.where(pruned, received.astype(jnp.float32), 1.0),
      data,
      train_key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    mask = part & (sign.step_ste(result.params - threshold) > 0)
    return Upload(
      MaskMessage(
        wire.Known(client_id, setup_bytes=0),
        MaskNews(part, jnp.broadcast_to(~pruned, part.shape), sizes),
        KeptBits(mask, part),
      ),
      data.count.astype(jnp.float32),
      Own(kernels.pack_bits(part), kernels.pack_bits(mask)),
      {"loss": result.loss, "density": jnp.mean(mask, dtype=jnp.float32)},
      # without any step there is nothing to prune by
      result.ok & (pruned | (data.budget > 0)),
    )

  def server(state, reduced):
    parts, (mean, held) = reduced
    return state._replace(
      mean=jnp.where(held, mean, state.mean), parts=state.parts | parts
    )

  def nothing(key):
    del key
    words = jnp.zeros(kernels.num_words(total), jnp.uint32)
    return Own(words, words)

  def predict(state, own, client_id):
    del client_id
    mask = kernels.unpack_bits(own.mask, total)
    mask = jnp.where(_any(own.part), mask, state.mean >= threshold)
    return masked(state.weights, mask.astype(jnp.float32))

  return Algorithm(
    init=init,
    downlink=send,
    client=client,
    reducer=overlap(num_clients),
    server=server,
    global_params=lambda state: masked(
      state.weights, (state.mean >= threshold).astype(jnp.float32)
    ),
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
    init_client=nothing,
    predict=predict,
  )


def _pruning(shapes, density, structured, whole):
  """scores f32[P], larger = kept -> bool[P], as many in each layer."""
  full = tree.full_mask(shapes)
  if structured:
    counts = units.unit_counts(shapes, density, whole)
    return lambda flat: tree.ravel(
      units.top_units(tree.unravel(flat, full), counts)
    )
  if whole:
    raise UserError(
      f"whole={tuple(whole)} keeps units, but weights are pruned: give "
      "structured=True, or no whole"
    )
  budgets.check_density(shapes, density)
  layers = tree.layer_shapes(shapes)
  each = budgets.counts(layers, budgets.uniform(layers, density))
  counts = jnp.asarray(list(each.values()), jnp.int32)
  return lambda flat: tree.ravel(
    prune_grow.largest(tree.unravel(flat, full), full, counts)
  )


def _nbytes(weights: Params, shapes: Params) -> int:
  """What given weights take on the wire."""

  def shape_of(leaf):
    return leaf.shape, leaf.dtype

  if jax.tree.map(shape_of, weights) != jax.tree.map(shape_of, shapes):
    raise UserError(
      "weights of another model: give a tree of arrays like model.init's"
    )
  return int(wire.nbytes(weights))


def _any(words: Array) -> Array:
  return jnp.any(words != 0)
