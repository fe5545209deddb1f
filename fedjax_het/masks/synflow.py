"""SynFlow: iterative pruning by synaptic flow, without any data.

R(theta) = sum of the outputs for an all-ones input and |theta|; the score of
a weight is theta * dR/dtheta, the share of R that flows through it.

What the model must be: a network that is linear once weights and inputs are
positive and biases are zero (as at initialisation) - dense, convolution,
pooling, ReLU, skip connections, and norm layers as their affine part only.
Normalisation by batch or layer statistics is not: the pass has one all-ones
example, whose statistics mean nothing (the paper runs batch norm in eval mode
with running statistics 0 and 1, that is as the identity).  For such a network
pass a twin whose norm layers are the identity:
`models.resnet(..., norm="affine").apply` on the same parameters.

Overflow: R grows as width^depth.  In a chain of layers R is homogeneous of
degree one in every layer, so dividing layers by constants divides R and every
theta * dR/dtheta by the same product: the ranking stays, and there is nothing
to put back per layer.  So layers are divided by their gain as soon as the flow
leaves the range in which float32 is safe.  With skip connections the paths
would be divided unequally: such networks are exact while the flow fits, up to
about 1e30, which is 20 convolutions of 64 channels at He initialisation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key, Model, Params, PyTree
from fedjax_het.masks import budgets, select
from fedjax_het.masks import tree as mask_tree

# |log flow| up to which nothing is rescaled: float32 ends at e^88, and sums
# over units and pixels need some room.
_SAFE_LOG_FLOW = 70.0


def synflow(
  model: Model,
  params: Params,
  input_shape: tuple[int, ...],
  *,
  density: float,
  iterations: int = 100,
  key: Key,
) -> tuple[PyTree, PyTree]:
  """Prunes to density d in n steps, step i keeping the best d^(i/n).

  The ranking is global and exact (round(d^(i/n) P) weights, ties by `key`); a
  pruned weight never returns.  One `lax.scan`: works under jit, and under
  vmap over (params, key).

  Args:
    model: the network; see the module's text for what it may contain.
    params: initial parameters; only their absolute values matter.
    input_shape: shape of one example, without the batch axis.
    density: d in (0, 1], share of the maskable weights that stay.
    iterations: n; 1 is the one-shot score, 100 the paper's choice.
    key: typed PRNG key; decides among equal scores only.

  Returns:
    (mask, scores).  mask: bool tree, exactly `budgets.surviving(params, d)`
    maskable weights True.  scores: the flow that the last step ranked by, as
    a share of R (`flow`), 0 where pruned before it.

  Raises:
    UserError: the density is not in (0, 1] or removes a layer, or
      iterations < 1.

  References:
    Tanaka et al., Pruning neural networks without any data by iteratively
    conserving synaptic flow, 2020, arXiv:2006.05467, algorithm 1.
  """
  budgets.check_density(params, density)
  if iterations < 1:
    raise UserError(f"iterations {iterations} is below 1")
  total = mask_tree.num_maskable(params)
  share = density ** (np.arange(1, iterations + 1) / iterations)
  keep = np.round(share * total).astype(np.int32)
  keep[-1] = budgets.surviving(params, density)
  order = select.random_order(key, total)
  everything = mask_tree.full_mask(params)

  def prune(carry, keep):
    alive, _, log_flow = carry
    kept = mask_tree.apply_mask(params, mask_tree.unravel(alive, everything))
    scores, log_flow = _scaled_flow(model, kept, input_shape, log_flow)
    flat = mask_tree.ravel(scores)
    # -1: below the living weights through which nothing flows
    ranked = jnp.where(alive, flat, -1)
    return (select.exact_top_k(ranked, order, keep), flat, log_flow), None

  start = jnp.ones(total, bool), jnp.zeros(total), _log_gains(params).sum()
  (alive, flat, _), _ = jax.lax.scan(prune, start, jnp.asarray(keep))
  scores = mask_tree.unravel(flat, jax.tree.map(jnp.zeros_like, params))
  return mask_tree.unravel(alive, everything), scores


def flow(model: Model, params: Params, input_shape: tuple[int, ...]) -> PyTree:
  """One SynFlow score: |theta| * dR/d|theta| / R, without pruning.

  In a chain of layers the scores of every layer sum to 1 (conservation).

  Args:
    model: the network; see the module's text for what it may contain.
    params: parameters; apply a mask first to score what is left.
    input_shape: shape of one example, without the batch axis.

  Returns:
    Scores >= 0, a tree like `params`.
  """
  start = _log_gains(params).sum()
  return _scaled_flow(model, params, input_shape, start)[0]


def _scaled_flow(
  model: Model, params: Params, input_shape: tuple[int, ...], log_flow: Array
) -> tuple[PyTree, Array]:
  """Scores as shares of R, and log R.

  `log_flow` is what log R is expected to be.  The mean gains predict it well
  while weights are dense; among few surviving weights they do not, but then R
  is near that of the pruning step before.
  """
  gains = _log_gains(params)
  gains = gains + (log_flow - gains.sum()) / gains.size
  outside = jnp.abs(gains).sum() > _SAFE_LOG_FLOW
  shift = jnp.where(outside, gains, jnp.zeros_like(gains))
  scale = iter(jnp.exp(-shift))
  weights = jax.tree.map(
    lambda p, layer: jnp.abs(p) * next(scale) if layer else jnp.abs(p),
    params,
    mask_tree.maskable(params),
  )
  ones = jnp.ones((1, *input_shape))
  # In TF32, the default of some GPUs, near ties would rank anyhow.
  with jax.default_matmul_precision("highest"):
    total, grads = jax.value_and_grad(lambda w: jnp.sum(model.apply(w, ones)))(
      weights
    )
  safe = jnp.where(total > 0, total, jnp.ones_like(total))
  scores = jax.tree.map(lambda w, g: w * (g / safe), weights, grads)
  return scores, jnp.log(safe) + shift.sum()


def _log_gains(params: Params) -> Array:
  """log of how much each layer amplifies a constant input, f32[L].

  The mean over output units (the last axis) of the sum of |w| of a unit.
  """
  sums = [
    jnp.abs(leaf).sum() / leaf.shape[-1]
    for leaf in mask_tree.layers(params).values()
  ]
  gains = jnp.stack(sums)
  return jnp.log(jnp.where(gains > 0, gains, jnp.ones_like(gains)))
