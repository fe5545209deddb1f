"""Scores of weights: larger = kept.

Every score is a tree like the parameters; `select.top_k_mask` reads its
maskable leaves.  SynFlow, which prunes step by step, is in `synflow`.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core.types import Array, Examples, Key, Model, Params, PyTree
from fedjax_het.masks import tree as mask_tree


def magnitude(params: Params) -> PyTree:
  """|theta|."""
  return jax.tree.map(jnp.abs, params)


def random(key: Key, params: Params) -> PyTree:
  """Uniform in [0, 1), independent of the weights."""
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  draws = [
    jax.random.uniform(k, leaf.shape)
    for k, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(treedef, draws)


def snip(model: Model, params: Params, batch: Examples) -> PyTree:
  """|theta * dL/dtheta|: how much the loss moves when a weight is removed.

  L is the mean softmax cross-entropy of the batch.  The paper divides by the
  sum of all the scores, which ranks the same.

  Args:
    model: the network.
    params: where it is scored, usually the initialisation.
    batch: labelled examples, all real (no padding).

  Returns:
    Scores >= 0, a tree like `params`.

  References:
    Lee et al., SNIP: Single-shot Network Pruning based on Connection
    Sensitivity, 2019, arXiv:1810.02340.
  """
  grads = jax.grad(_loss, argnums=1)(model, params, batch, 1.0)
  return jax.tree.map(lambda p, g: jnp.abs(p * g), params, grads)


def grasp(
  model: Model, params: Params, batch: Examples, *, temperature: float = 200.0
) -> PyTree:
  """theta * (H g): how much of the gradient's norm hangs on a weight.

  The paper scores S(-theta) = -theta * (H g), the first-order change of
  g'g / 2 when the weight is removed, and REMOVES the largest: a weight whose
  removal raises the gradient flow is not missed.  Here the sign is turned, so
  that larger = kept as everywhere in this module; scores have both signs.
  g and H are taken over the maskable leaves only, as in the paper's code.

  Args:
    model: the network.
    params: where it is scored, usually the initialisation.
    batch: labelled examples, all real (no padding).
    temperature: divides the logits, to smooth the softmax; 200 in the paper's
      code, 1 for the plain loss.

  Returns:
    Scores, a tree like `params`; zeros on dense leaves.

  References:
    Wang et al., Picking Winning Tickets Before Training by Preserving
    Gradient Flow, 2020, arXiv:2002.07376; code alecwangcq/GraSP.
  """

  def gradient(p: Params) -> Params:
    grads = jax.grad(_loss, argnums=1)(model, p, batch, temperature)
    return jax.tree.map(
      lambda g, use: g if use else jnp.zeros_like(g),
      grads,
      mask_tree.maskable(params),
    )

  _, hessian_times_g = jax.jvp(gradient, (params,), (gradient(params),))
  return jax.tree.map(jnp.multiply, params, hessian_times_g)


def _loss(
  model: Model, params: Params, batch: Examples, temperature: float
) -> Array:
  logits = model.apply(params, batch.x) / temperature
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y).mean()
