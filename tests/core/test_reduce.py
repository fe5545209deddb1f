"""Reducers against float64 loops, and as monoids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core import reduce

N = 7


def _messages(seed=0):
  rng = np.random.default_rng(seed)
  tree = {
    "a": rng.normal(size=(N, 4, 3)).astype(np.float32),
    "b": rng.normal(size=(N, 5)).astype(np.float32),
  }
  weights = rng.integers(0, 9, size=N).astype(np.float32)
  weights[2] = 0
  return tree, weights


def _reduce(reducer, messages, weights, chunks):
  """Folds the messages in chunks of the given sizes, merging halves."""
  first = jax.tree.map(lambda m: jnp.asarray(m[0]), messages)
  parts, start = [], 0
  for size in chunks:
    part = jax.tree.map(lambda m, s=start, n=size: m[s : s + n], messages)
    acc = reducer.add(
      reducer.zero(first), part, jnp.asarray(weights[start : start + size])
    )
    parts.append(acc)
    start += size
  acc = parts[0]
  for part in parts[1:]:
    acc = reducer.merge(acc, part)
  return reducer.finish(acc)


CHUNKS = [(7,), (1,) * 7, (3, 4), (2, 1, 4)]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_weighted_mean(chunks):
  tree, weights = _messages()
  got = _reduce(reduce.weighted_mean(), tree, weights, chunks)
  for name, leaf in tree.items():
    want = np.average(leaf.astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(got[name], want, rtol=1e-5)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_segment_mean(chunks):
  tree, weights = _messages()
  segment = np.array([0, 2, 1, 2, 0, 0, 2], np.int32)  # segment 3 stays empty
  total, got = _reduce(reduce.segment_mean(4), (segment, tree), weights, chunks)
  for k in range(4):
    mine = (segment == k) & (weights > 0)
    np.testing.assert_allclose(total[k], weights[mine].sum())
    for name, leaf in tree.items():
      want = np.zeros(leaf.shape[1:])
      if mine.any():
        want = np.average(leaf[mine], axis=0, weights=weights[mine])
      np.testing.assert_allclose(got[name][k], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunks", CHUNKS)
def test_overlap_mean_divides_by_the_weight_present(chunks):
  tree, weights = _messages()
  rng = np.random.default_rng(1)
  mask = jax.tree.map(lambda v: rng.random(v.shape) < 0.3, tree)
  mean, held = _reduce(reduce.overlap_mean(), (tree, mask), weights, chunks)
  for name, leaf in tree.items():
    w = weights.reshape(-1, *[1] * (leaf.ndim - 1)) * mask[name]
    total = w.sum(0)
    want = (w * leaf).sum(0) / np.where(total > 0, total, 1)
    np.testing.assert_allclose(mean[name], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(held[name], total > 0)


def test_overlap_mean_with_full_masks_is_the_weighted_mean():
  tree, weights = _messages()
  ones = jax.tree.map(np.ones_like, tree)
  mean, _ = _reduce(reduce.overlap_mean(), (tree, ones), weights, (7,))
  want = _reduce(reduce.weighted_mean(), tree, weights, (7,))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mean, want
  )


def test_no_weight_at_all_gives_zeros():
  tree, _ = _messages()
  got = _reduce(reduce.weighted_mean(), tree, np.zeros(N, np.float32), (7,))
  assert all((np.asarray(leaf) == 0).all() for leaf in got.values())


def test_a_mean_of_integers_is_refused():
  with pytest.raises(TypeError, match="int32"):
    reduce.weighted_mean().zero({"a": jnp.zeros(3, jnp.int32)})
