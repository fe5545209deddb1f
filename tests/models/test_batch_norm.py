"""Batch norm with explicit statistics: against NumPy, and as an average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.core.types import Examples
from fedjax_het.masks import saliency, tree
from fedjax_het.models import batch_norm

MODEL = batch_norm.mlp_with_batch_norm((2, 3), 4, hidden=(8, 5))
RNG = np.random.default_rng(0)
X = RNG.normal(loc=0.7, scale=2, size=(11, 2, 3)).astype(np.float32)
WEIGHT = np.array([1] * 8 + [0] * 3, np.float32)


def params():
  found = MODEL.training.init(jax.random.key(3))
  for i in range(2):  # nothing at its start value
    norm = found[f"norm_{i}"]
    draws = {
      name: RNG.uniform(0.5, 2, leaf.shape).astype(np.float32)
      for name, leaf in norm.items()
    }
    found[f"norm_{i}"] = jax.tree.map(jnp.asarray, draws)
  return found


def numpy_forward(p, x, weight=None):
  """Logits in float64, and the statistics; None takes those of `p`."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
  x, found = x.reshape(len(x), -1).astype(np.float64), []
  for i in range(2):
    z, norm = x @ p[f"dense_{i}"]["kernel"], p[f"norm_{i}"]
    mean, var = norm["mean"], norm["var"]
    if weight is not None:
      mean = np.average(z, axis=0, weights=weight)
      var = np.average((z - mean) ** 2, axis=0, weights=weight)
      found.append((mean, var))
    z = (z - mean) / np.sqrt(var + 1e-5)
    x = np.maximum(z * norm["scale"] + norm["bias"], 0)
  return x @ p["dense_2"]["kernel"] + p["dense_2"]["bias"], found


def test_training_takes_the_batch_and_evaluation_the_parameters():
  p = params()
  for model, weight in (
    (MODEL.training, np.ones(11)),
    (MODEL.evaluation, None),
  ):
    want, _ = numpy_forward(p, X, weight)
    np.testing.assert_allclose(model.apply(p, X), want, rtol=1e-4, atol=1e-4)


def test_collect_leaves_padding_out():
  p = params()
  _, want = numpy_forward(p, X[:8], np.ones(8))
  padded = X.copy()
  padded[8:] = 1e3
  for got, (mean, var) in zip(
    MODEL.collect(p, padded, WEIGHT), want, strict=True
  ):
    np.testing.assert_allclose(got["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["var"], var, rtol=1e-4, atol=1e-5)


def test_with_its_own_statistics_evaluation_is_training():
  p = params()
  found = MODEL.collect(p, X, jnp.ones(11))
  ready = batch_norm.with_statistics(p, found)
  np.testing.assert_allclose(
    MODEL.evaluation.apply(ready, X),
    MODEL.training.apply(p, X),
    rtol=1e-4,
    atol=1e-4,
  )


def test_a_step_of_sgd_is_a_running_average():
  """And the loss's own scale does not matter to it."""
  p = params()
  _, stats = numpy_forward(p, X, np.ones(11))

  def loss(p):
    return 1e-3 * jnp.sum(jnp.square(MODEL.training.apply(p, X)))

  grads = jax.grad(loss)(p)
  after = optax.apply_updates(p, jax.tree.map(lambda g: -0.25 * g, grads))
  for i, (mean, var) in enumerate(stats):
    old, new = p[f"norm_{i}"], after[f"norm_{i}"]
    for name, batch in (("mean", mean), ("var", var)):
      want = 0.75 * np.asarray(old[name], np.float64) + 0.25 * batch
      np.testing.assert_allclose(new[name], want, rtol=1e-4, atol=1e-5)


def test_gradients_of_the_weights_are_those_of_finite_differences():
  p = params()
  labels = jnp.arange(11) % 4

  def loss(p):
    logits = MODEL.training.apply(p, X)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  grads = jax.grad(loss)(p)
  for name, leaf, at in (
    ("dense_0", "kernel", (2, 3)),
    ("dense_1", "kernel", (4, 1)),
    ("norm_0", "scale", (2,)),
    ("dense_2", "bias", (1,)),
  ):
    values = []
    for step in (1e-3, -1e-3):
      q = jax.tree.map(lambda leaf: leaf, p)
      q[name][leaf] = q[name][leaf].at[at].add(step)
      logits, _ = numpy_forward(q, X, np.ones(11))
      logits -= logits.max(1, keepdims=True)
      log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
      values.append(-log_p[np.arange(11), np.asarray(labels)].mean())
    want = (values[0] - values[1]) / 2e-3
    np.testing.assert_allclose(
      grads[name][leaf][at], want, rtol=0.05, atol=1e-4
    )


def test_masks_touch_kernels_only():
  shapes = tree.layer_shapes(MODEL.training.init(jax.random.key(0)))
  assert shapes == {
    "dense_0/kernel": (6, 8),
    "dense_1/kernel": (8, 5),
    "dense_2/kernel": (5, 4),
  }
  scores = saliency.snip(
    MODEL.training, params(), Examples(jnp.asarray(X), jnp.arange(11) % 4)
  )
  assert all((np.asarray(s) > 0).any() for s in tree.layers(scores).values())
