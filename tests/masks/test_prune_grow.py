"""Moving masks against sorting in NumPy; exact counts, ties, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_pruning as oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_het.masks import prune_grow, tree

SHAPES = {"a": (5, 4), "b": (3, 3)}
BIAS = np.full(4, 7.0, np.float32)  # a dense leaf, never touched

# Few distinct values, so that ties are common.
VALUES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0])


def arrays(elements, dtype):
  return st.fixed_dictionaries(
    {n: hnp.arrays(dtype, s, elements=elements) for n, s in SHAPES.items()}
  )


def on_device(found, dense):
  return {n: jnp.asarray(x) for n, x in found.items()} | {
    "bias": jnp.asarray(dense)
  }


prune_and_grow = jax.jit(prune_grow.prune_and_grow)


@given(
  arrays(VALUES, np.float32),
  arrays(st.booleans(), bool),
  arrays(VALUES, np.float32),
  st.tuples(st.integers(0, 25), st.integers(0, 12)),
)
@settings(deadline=None, max_examples=100)
def test_prune_and_grow_equals_a_sort(weights, masks, gradients, counts):
  weights = {n: w * masks[n] for n, w in weights.items()}
  got, mask = prune_and_grow(
    on_device(weights, BIAS),
    on_device(masks, np.ones(4, bool)),
    on_device(gradients, BIAS),
    jnp.asarray(counts, jnp.int32),
  )
  for name, count in zip(SHAPES, counts, strict=True):
    want, want_mask = oracles.move(
      weights[name], masks[name], gradients[name], count
    )
    np.testing.assert_array_equal(mask[name], want_mask)
    np.testing.assert_array_equal(got[name], want)
    assert np.asarray(mask[name]).sum() == masks[name].sum()
  np.testing.assert_array_equal(got["bias"], BIAS)
  assert np.asarray(mask["bias"]).all()


def test_what_just_went_does_not_come_back_and_starts_at_zero():
  """Even where the pruned weight has the largest gradient of all."""
  weights = {"a": jnp.asarray([[0.1, 5.0, 0.0, 0.0]])}
  mask = {"a": jnp.asarray([[True, True, False, False]])}
  gradients = {"a": jnp.asarray([[99.0, 99.0, 1.0, -2.0]])}
  got, after = prune_grow.prune_and_grow(
    weights, mask, gradients, jnp.asarray([1])
  )
  np.testing.assert_array_equal(after["a"], [[False, True, False, True]])
  np.testing.assert_array_equal(got["a"], [[0, 5, 0, 0]])


@pytest.mark.parametrize("counts", [(7, 0), (20, 9), (1, 3)])
def test_by_magnitude_keeps_the_largest_of_each_layer(counts):
  rng = np.random.default_rng(0)
  weights = {
    n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()
  }
  mask = prune_grow.by_magnitude(
    on_device(weights, BIAS), jnp.asarray(counts, jnp.int32)
  )
  for name, count in zip(SHAPES, counts, strict=True):
    want = np.zeros(weights[name].size, bool)
    want[np.argsort(-np.abs(weights[name]).ravel())[:count]] = True
    np.testing.assert_array_equal(mask[name], want.reshape(SHAPES[name]))
  assert np.asarray(mask["bias"]).all()


def test_by_magnitude_keeps_only_what_is_allowed_even_at_ties():
  mask = prune_grow.by_magnitude(
    {"a": jnp.zeros((2, 3))},
    jnp.asarray([2]),
    among={"a": jnp.asarray([[False, False, True], [False, True, True]])},
  )
  np.testing.assert_array_equal(
    mask["a"], [[False, False, True], [False, True, False]]
  )


def test_inactive_top_never_marks_a_kept_weight():
  gradients = {"a": jnp.asarray([[9.0, -8.0, 1.0, 0.0]])}
  mask = {"a": jnp.asarray([[True, False, False, False]])}
  for count, want in ((1, [0, 1, 0, 0]), (2, [0, 1, 1, 0]), (9, [0, 1, 1, 1])):
    found = prune_grow.inactive_top(gradients, mask, jnp.asarray([count]))
    np.testing.assert_array_equal(found["a"][0], np.array(want, bool))


def test_cosine_counts_fall_to_nothing():
  mask = {"a": jnp.ones((5, 4), bool), "b": jnp.eye(3, dtype=bool)}
  found = np.stack(
    [
      prune_grow.cosine_counts(mask, jnp.int32(t), share=0.3, stop=40)
      for t in (0, 10, 20, 30, 40, 50)
    ]
  )
  # .15 (1 + cos) of 20 and of 3 weights: 6, 5.1, 3, .9, 0, 0 and .9, .8, ...
  np.testing.assert_array_equal(found[:, 0], [6, 5, 3, 1, 0, 0])
  np.testing.assert_array_equal(found[:, 1], [1, 1, 0, 0, 0, 0])
  never = prune_grow.cosine_counts(mask, jnp.int32(3), share=0.3, stop=0)
  np.testing.assert_array_equal(never, [0, 0])


def test_masks_of_many_models_move_under_vmap():
  key = jax.random.key(0)
  weights = {"a": jax.random.normal(key, (3, 6, 4))}
  mask = {"a": jax.random.bernoulli(jax.random.key(1), 0.5, (3, 6, 4))}
  weights = tree.apply_mask(weights, mask)
  gradients = {"a": jax.random.normal(jax.random.key(2), (3, 6, 4))}
  counts = jnp.asarray([[2], [0], [5]], jnp.int32)
  got = jax.vmap(prune_grow.prune_and_grow)(weights, mask, gradients, counts)
  for i in range(3):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], (weights, mask, gradients))
    want = prune_grow.prune_and_grow(*one, counts[i])
    jax.tree.map(
      lambda g, w, i=i: np.testing.assert_array_equal(g[i], w), got, want
    )
