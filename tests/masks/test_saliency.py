"""SNIP and GraSP against a brute-force Hessian; magnitude and random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from fedjax_het.core.types import Examples, Model
from fedjax_het.masks import saliency, select, tree


class Tiny(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = jnp.tanh(nn.Dense(3)(x))
    return nn.Dense(2)(x)


def tiny_model():
  net = Tiny()
  return Model(lambda key: net.init(key, jnp.zeros((1, 4))), net.apply)


def tiny_params(seed):
  params = tiny_model().init(jax.random.key(seed))
  flat, unravel = ravel_pytree(params)
  noise = np.random.default_rng(seed).normal(size=flat.size) * 0.5
  return unravel(flat + jnp.asarray(noise, flat.dtype))  # biases not zero


def tiny_batch(seed):
  rng = np.random.default_rng(100 + seed)
  x = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
  return Examples(x, jnp.asarray(rng.integers(0, 2, 6)).astype(jnp.int32))


def numpy_loss(params, batch, temperature=1.0):
  """Mean cross-entropy in float64 NumPy, from explicit matrices."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)["params"]
  hidden = np.tanh(
    np.asarray(batch.x, np.float64) @ p["Dense_0"]["kernel"]
    + p["Dense_0"]["bias"]
  )
  logits = hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
  logits /= temperature
  logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  return -logs[np.arange(6), np.asarray(batch.y)].mean()


def numpy_gradient(params, batch, temperature=1.0, step=1e-5):
  """Central differences of `numpy_loss`, as one float64 vector."""
  leaves, treedef = jax.tree.flatten(params)
  leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
  out = []
  for leaf in leaves:
    for i in np.ndindex(leaf.shape):
      old = leaf[i]
      ends = []
      for sign in (1, -1):
        leaf[i] = old + sign * step
        ends.append(numpy_loss(treedef.unflatten(leaves), batch, temperature))
      leaf[i] = old
      out.append((ends[0] - ends[1]) / (2 * step))
  return np.array(out)


def flat64(params):
  return np.asarray(ravel_pytree(params)[0], np.float64)


def is_kernel(params):
  ones = jax.tree.map(
    lambda p, use: jnp.full(p.shape, float(use)), params, tree.maskable(params)
  )
  return flat64(ones) > 0


def test_snip_is_weight_times_gradient():
  params, batch = tiny_params(0), tiny_batch(0)
  scores = saliency.snip(tiny_model(), params, batch)
  expected = np.abs(flat64(params) * numpy_gradient(params, batch))
  np.testing.assert_allclose(flat64(scores), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_grasp_is_weight_times_hessian_gradient(temperature):
  params, batch = tiny_params(1), tiny_batch(1)
  model = tiny_model()
  kernel = is_kernel(params)
  flat, unravel = ravel_pytree(params)

  def loss(v):
    logits = model.apply(unravel(v), batch.x) / temperature
    logs = jax.nn.log_softmax(logits)
    return -logs[jnp.arange(6), batch.y].mean()

  hessian = np.asarray(jax.hessian(loss)(flat), np.float64)
  gradient = numpy_gradient(params, batch, temperature) * kernel
  expected = flat64(params) * (hessian @ gradient) * kernel
  scores = saliency.grasp(model, params, batch, temperature=temperature)
  np.testing.assert_allclose(
    flat64(scores), expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max()
  )


def test_grasp_keeps_what_carries_the_gradient():
  """Larger = kept: shrinking the best weight loses the most of g'g."""
  params, batch = tiny_params(2), tiny_batch(2)
  kernel = is_kernel(params)
  scores = flat64(saliency.grasp(tiny_model(), params, batch, temperature=1.0))
  flat, unravel = ravel_pytree(params)
  before = np.sum(numpy_gradient(params, batch)[kernel] ** 2)
  change = np.zeros(flat.size)
  for i in np.flatnonzero(kernel):
    less = unravel(flat.at[i].multiply(jnp.float32(0.99)))
    change[i] = np.sum(numpy_gradient(less, batch)[kernel] ** 2) - before
  assert np.argmax(scores) == np.argmin(change)
  assert np.argmin(scores) == np.argmax(change)


def test_magnitude_and_random():
  params = tiny_params(0)
  jax.tree.map(
    lambda s, p: np.testing.assert_array_equal(s, np.abs(p)),
    saliency.magnitude(params),
    params,
  )
  first = saliency.random(jax.random.key(0), params)
  again = saliency.random(jax.random.key(0), params)
  other = saliency.random(jax.random.key(1), params)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not np.array_equal(flat64(first), flat64(other))
  assert np.unique(flat64(first)).size == flat64(first).size


@pytest.mark.parametrize("score", ["snip", "grasp"])
def test_vmap_over_seeds_equals_a_loop(score):
  model, f = tiny_model(), getattr(saliency, score)
  many = [tiny_params(seed) for seed in range(3)]
  batches = [tiny_batch(seed) for seed in range(3)]
  stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
  together = jax.jit(jax.vmap(lambda p, b: f(model, p, b)))(
    stack(many), stack(batches)
  )
  alone = stack([f(model, p, b) for p, b in zip(many, batches, strict=True)])
  jax.tree.map(
    lambda t, a: np.testing.assert_allclose(
      t, a, rtol=1e-4, atol=1e-5 * np.abs(a).max()
    ),
    together,
    alone,
  )


@pytest.mark.parametrize("score", ["snip", "grasp"])
def test_scores_select_exactly(score):
  model, params, batch = tiny_model(), tiny_params(0), tiny_batch(0)
  scores = getattr(saliency, score)(model, params, batch)
  mask = select.top_k_mask(scores, jax.random.key(0), density=0.5)
  assert int(tree.num_kept(mask)) == 9
