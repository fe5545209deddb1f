"""FedTiny's choice among candidates, by a NumPy loop over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_het.algorithms import bn_selection
from fedjax_het.algorithms._bn_selection import total_statistics
from fedjax_het.core.errors import UserError
from fedjax_het.masks import density_pool as pool
from fedjax_het.masks import prune_grow, sparse_wire, tree
from fedjax_het.models.batch_norm import mlp_with_batch_norm, statistics

MODEL = mlp_with_batch_norm(tiny.INPUT_SHAPE, tiny.CLASSES, hidden=(9, 7))
CLIENTS = [1, 3, 4, 6]


def candidates(params):
  counts = pool.density_pool(tree.layer_shapes(params), 0.4, 3, seed=5)
  masks = jax.vmap(prune_grow.by_magnitude, in_axes=(None, 0))
  return masks(params, jnp.asarray(counts))


def numpy_selection(params, mask, data):
  """(loss, global statistics) of one candidate, in float64."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  kernels = [
    p[f"dense_{i}"]["kernel"] * np.asarray(mask[f"dense_{i}"]["kernel"])
    for i in range(3)
  ]
  each = []
  for k in CLIENTS:
    rows = np.asarray(data.train.index[k])[: int(data.train.count[k])]
    x = np.asarray(data.examples.x, np.float64)[rows]
    each.append((x, np.asarray(data.examples.y)[rows]))
  share = np.array([len(y) for _, y in each], np.float64)
  share /= share.sum()

  def forward(x, stats=None):
    found = []
    for i in range(2):
      z = x @ kernels[i]
      mean, var = (z.mean(0), z.var(0)) if stats is None else stats[i]
      found.append((mean, var))
      x = np.maximum((z - mean) / np.sqrt(var + 1e-5), 0)
    return x @ kernels[2], found

  local = [forward(x)[1] for x, _ in each]
  stats = []
  for i in range(2):
    mean = sum(s * f[i][0] for s, f in zip(share, local, strict=True))
    var = sum(
      s * (f[i][1] + (f[i][0] - mean) ** 2)
      for s, f in zip(share, local, strict=True)
    )
    stats.append((mean, var))
  loss = 0
  for s, (x, y) in zip(share, each, strict=True):
    logits, _ = forward(x, stats)
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss -= s * log_p[np.arange(len(y)), y].mean()
  return loss, stats


def test_selection_equals_the_loop():
  params, data = MODEL.training.init(jax.random.key(2)), tiny.data()
  masks = candidates(params)
  got = jax.jit(
    lambda p, m, data: bn_selection(MODEL, p, m, data, jnp.asarray(CLIENTS))
  )(params, masks, data)
  want = [
    numpy_selection(params, jax.tree.map(lambda m, c=c: m[c], masks), data)
    for c in range(3)
  ]
  losses = [loss for loss, _ in want]
  np.testing.assert_allclose(got.loss, losses, rtol=1e-4)
  assert int(got.best) == int(np.argmin(losses))
  for c, (_, stats) in enumerate(want):
    for layer, (mean, var) in zip(got.statistics, stats, strict=True):
      np.testing.assert_allclose(layer["mean"][c], mean, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(layer["var"][c], var, rtol=1e-4, atol=1e-5)


def test_its_bytes_are_those_of_its_messages():
  params = MODEL.training.init(jax.random.key(2))
  masks = candidates(params)
  got = bn_selection(MODEL, params, masks, tiny.data(), jnp.asarray(CLIENTS))
  floats = 3 * 2 * (9 + 7)  # mean and variance of each channel, candidate
  assert int(got.up_bytes) == 4 * (floats + 3 + 1)
  each = [jax.tree.map(lambda m, c=c: m[c], masks) for c in range(3)]
  union = np.any([np.asarray(tree.ravel(m)) for m in each], axis=0).sum()
  dense = 4 * 9 + 4 * 7 + 3  # scale, bias, mean, var; the last bias
  coded = sum(sparse_wire.mask_nbytes(m) for m in each)
  assert int(got.down_bytes) == coded + 4 * (union + dense + floats)


def test_parts_of_a_batch_have_together_the_total_variance():
  """Exact in the first layer: as if all rows had been in one place."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)
  parts = [x[:2], x[2:5], x[5:]]
  found = [statistics(part, jnp.ones(len(part))) for part in parts]
  stacked = [
    {
      "mean": jnp.stack([m for m, _ in found]),
      "var": jnp.stack([v for _, v in found]),
    }
  ]
  (total,) = total_statistics(stacked, jnp.asarray([2, 3, 7]) / 12)
  np.testing.assert_allclose(total["mean"], x.mean(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(total["var"], x.var(0), rtol=1e-5, atol=1e-6)


def test_candidates_keep_one_number_and_no_layer_empty():
  shapes = {"a": (784, 256), "b": (256, 128), "c": (128, 10)}
  sizes = np.array([784 * 256, 256 * 128, 128 * 10])
  for density in (0.001, 0.02, 0.5, 1.0):
    counts = pool.density_pool(shapes, density, 20, seed=1)
    assert (counts.sum(1) == round(density * sizes.sum())).all()
    assert (counts >= 1).all() and (counts <= sizes[None]).all()
    # every output has a weight, where a uniform mask has as many
    least = np.minimum([256, 128, 10], np.floor(density * sizes))
    assert (counts >= least[None]).all()
    np.testing.assert_allclose(counts[0] / sizes, density, atol=1 / 1280)
  counts = pool.density_pool(shapes, 0.02, 20, seed=1)
  assert np.ptp(np.log(counts), axis=0).min() > 0.5  # candidates differ
  again = pool.density_pool(shapes, 0.02, 20, seed=1)
  np.testing.assert_array_equal(counts, again)


def test_impossible_pools_are_named():
  with pytest.raises(UserError, match="ask for 1 or more"):
    pool.density_pool({"a": (4, 4)}, 0.5, 0, seed=0)
  with pytest.raises(UserError, match="less than one weight a layer"):
    pool.density_pool({"a": (4, 4), "b": (2, 2)}, 0.05, 2, seed=0)
