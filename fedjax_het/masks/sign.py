"""Training which weights or signs to use, while the weights stay frozen.

The straight-through functions have a discrete value and the derivative of a
smooth stand-in.  They are `custom_jvp`s with linear rules, so grad, jvp and
vmap all work, and the forward value is exact.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import unknown
from fedjax_het.core.types import Array, Key, Params, PyTree
from fedjax_het.masks import tree as mask_tree

Backward = Literal["identity", "clip", "tanh"]

# d(stand-in)/ds at a score s.
_SLOPES = {
  "identity": jnp.ones_like,
  "clip": lambda s: (jnp.abs(s) <= 1).astype(s.dtype),
  "tanh": lambda s: 1 - jnp.square(jnp.tanh(s)),
}


def sign_ste(scores: Array, backward: Backward = "identity") -> Array:
  """sgn(s) in {-1, +1} with sgn(0) = +1; backward as a smooth stand-in.

  Args:
    scores: float array s.
    backward: the derivative: "identity" 1; "clip" 1 where |s| <= 1, else 0;
      "tanh" 1 - tanh(s)^2.

  Returns:
    Array like `scores`.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic
    Neurons, 2013, arXiv:1308.3432; "clip": Hubara et al., Binarized Neural
    Networks, 2016, arXiv:1602.02830.
  """
  if backward not in _SLOPES:
    raise unknown("backward", backward, _SLOPES)
  return _sign(scores, backward)


def step_ste(scores: Array, backward: Backward = "identity") -> Array:
  """1 where s >= 0, else 0; backward as in `sign_ste`.

  Args:
    scores: float array s.
    backward: the derivative, see `sign_ste`.

  Returns:
    Array like `scores`, in {0, 1}.
  """
  if backward not in _SLOPES:
    raise unknown("backward", backward, _SLOPES)
  return _step(scores, backward)


def bernoulli_ste(key: Key, scores: Array) -> Array:
  """A sample of Bernoulli(sigmoid(s)); backward the probability's derivative.

  The gradient passes straight through the draw to p = sigmoid(s):
  d/ds := p (1 - p).

  Args:
    key: typed PRNG key of the draw.
    scores: float array s, logits.

  Returns:
    Array like `scores`, in {0, 1}.

  References:
    Isik et al., Sparse Random Networks for Communication-Efficient Federated
    Learning (FedPM), 2023, arXiv:2209.15328.
  """
  uniform = jax.random.uniform(key, scores.shape, scores.dtype)
  return _draw(scores, uniform)


def logit_clipped(probability: Array, eps: float = 1e-4) -> Array:
  """log(p / (1 - p)) of p clipped to [eps, 1 - eps]; so |result| is finite.

  The inverse of the sigmoid for averaged masks, which reach 0 and 1.

  Args:
    probability: float array p in [0, 1].
    eps: in (0, 1/2); at 1e-4 the result is within +-9.21.
  """
  p = jnp.clip(probability, eps, 1 - eps)
  return jnp.log(p) - jnp.log1p(-p)


def rescale_kept(params: Params, mask: PyTree) -> Params:
  """Prunes, and scales what is left of layer l by 1 / sqrt(d_l).

  A unit that sums d_l of its inputs has d_l of the variance; weights that are
  never trained cannot make up for it.

  Args:
    params: float arrays.
    mask: bool tree; d_l is its density in layer l.  A layer that keeps
      nothing becomes zeros.

  Returns:
    A tree like `params`; dense leaves unchanged.
  """

  def rescale(p: Array, m: Array, layer: bool) -> Array:
    if not layer:
      return p
    kept = jnp.maximum(jnp.sum(m, dtype=jnp.int32), 1).astype(p.dtype)
    return p * jnp.sqrt(p.size / kept)

  kept = mask_tree.apply_mask(params, mask)
  return jax.tree.map(rescale, kept, mask, mask_tree.maskable(params))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sign(s: Array, backward: Backward) -> Array:
  del backward
  return jnp.where(s >= 0, jnp.ones_like(s), -jnp.ones_like(s))


@_sign.defjvp
def _sign_jvp(backward, primals, tangents):
  (s,), (ds,) = primals, tangents
  return _sign(s, backward), _SLOPES[backward](s) * ds


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _step(s: Array, backward: Backward) -> Array:
  del backward
  return (s >= 0).astype(s.dtype)


@_step.defjvp
def _step_jvp(backward, primals, tangents):
  (s,), (ds,) = primals, tangents
  return _step(s, backward), _SLOPES[backward](s) * ds


@jax.custom_jvp
def _draw(s: Array, uniform: Array) -> Array:
  return (uniform < jax.nn.sigmoid(s)).astype(s.dtype)


@_draw.defjvp
def _draw_jvp(primals, tangents):
  s, uniform = primals
  p = jax.nn.sigmoid(s)
  return _draw(s, uniform), p * (1 - p) * tangents[0]
