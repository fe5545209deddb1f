"""Exact top-k against NumPy sorting; ties, guards, vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_het.core.errors import UserError
from fedjax_het.masks import budgets, select, tree

# Few distinct values, so that ties are common; both signs, zeros, extremes.
SCORES = hnp.arrays(
  np.float32,
  st.sampled_from([1, 2, 16, 37]),  # few: every size compiles anew
  elements=st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 3e38, 1e-40]),
    st.floats(width=32, allow_nan=False),
  ),
)


def scores(seed=0, constant=False):
  rng = np.random.default_rng(seed)
  draw = np.ones if constant else lambda shape: rng.normal(size=shape)
  return {
    "a": {"bias": jnp.full(5, 1e9), "kernel": jnp.asarray(draw((20, 5)))},
    "b": {"kernel": jnp.asarray(draw((3, 3, 2, 4)))},
  } | {"c": jnp.asarray(draw((10, 2)))}


def kept_layers(mask):
  return {name: int(m.sum()) for name, m in tree.layers(mask).items()}


def numpy_top_k(flat, order, keep):
  """Sorts by (score, order), best last."""
  best = np.lexsort((order, flat + np.float32(0)))[flat.size - keep :]
  out = np.zeros(flat.size, bool)
  out[best] = True
  return out


exact_top_k = jax.jit(select.exact_top_k)


@given(SCORES, st.data())
@settings(deadline=None, max_examples=150)
def test_exact_top_k_equals_a_sort(flat, data):
  keep = data.draw(st.integers(0, flat.size))
  order = np.random.default_rng(flat.size).permutation(flat.size)
  found = exact_top_k(
    jnp.asarray(flat), jnp.asarray(order, jnp.int32), jnp.int32(keep)
  )
  np.testing.assert_array_equal(found, numpy_top_k(flat, order, keep))


def test_nan_is_kept_last():
  flat = jnp.array([jnp.nan, -5.0, 2.0, jnp.nan, 0.0])
  found = exact_top_k(flat, jnp.arange(5), jnp.int32(3))
  np.testing.assert_array_equal(found, [False, True, True, False, True])


def test_traced_k_and_vmap_equal_a_loop():
  rng = np.random.default_rng(0)
  flat = jnp.asarray(rng.integers(0, 6, (4, 300)), jnp.float32)
  order = jnp.stack(
    [select.random_order(jax.random.key(i), 300) for i in range(4)]
  )
  keep = jnp.array([0, 17, 150, 300])
  together = jax.jit(jax.vmap(select.exact_top_k))(flat, order, keep)
  for i in range(4):
    np.testing.assert_array_equal(
      together[i],
      numpy_top_k(np.asarray(flat[i]), np.asarray(order[i]), int(keep[i])),
    )


def test_global_keeps_the_best_of_all_layers():
  s = scores()
  mask = select.top_k_mask(s, jax.random.key(0), density=0.25)
  flat, kept = np.asarray(tree.ravel(s)), np.asarray(tree.ravel(mask))
  assert kept.sum() == round(0.25 * 192)
  assert flat[kept].min() > flat[~kept].max()
  assert bool(mask["a"]["bias"].all())


def test_layer_scope_and_counts_rank_within_layers():
  s = scores()
  uniform = select.top_k_mask(s, jax.random.key(0), density=0.25, scope="layer")
  assert kept_layers(uniform) == {"a/kernel": 25, "b/kernel": 18, "c": 5}
  counts = budgets.counts(
    tree.layer_shapes(s), budgets.erk(tree.layer_shapes(s), 0.3)
  )
  mask = select.top_k_mask(s, jax.random.key(0), keep=counts)
  assert kept_layers(mask) == counts
  for name, leaf in tree.layers(s).items():
    kept = np.asarray(tree.layers(mask)[name])
    assert np.asarray(leaf)[kept].min() > np.asarray(leaf)[~kept].max()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_ties_are_exact_seeded_and_spread(scope):
  s = scores(constant=True)

  @jax.jit
  @jax.vmap
  def draw(key):
    return tree.ravel(select.top_k_mask(s, key, density=0.3, scope=scope))

  keys = jax.random.split(jax.random.key(0), 60)
  masks = np.asarray(draw(keys))
  assert (masks.sum(1) == round(0.3 * 192)).all()
  np.testing.assert_array_equal(masks[:5], draw(keys[:5]))
  assert (masks[0] != masks[1]).any()
  # Mean over 60 seeds of a Bernoulli(0.3): sd 0.059, 5 sd at every position.
  np.testing.assert_allclose(masks.mean(0), 0.3, atol=0.3)


def test_min_per_layer_protects_the_best_of_a_weak_layer():
  s = scores()
  s["c"] = s["c"] - 100
  key = jax.random.key(0)
  lost = select.top_k_mask(s, key, keep=30)
  assert not bool(tree.no_layer_empty(lost))
  guarded = select.top_k_mask(s, key, keep=30, min_per_layer=3)
  assert int(tree.num_kept(guarded)) == 30
  assert kept_layers(guarded)["c"] == 3
  kept = np.asarray(guarded["c"])
  assert np.asarray(s["c"])[kept].min() > np.asarray(s["c"])[~kept].max()


def test_vmap_over_seeds_equals_a_loop():
  many = [scores(seed) for seed in range(3)]
  keys = jax.random.split(jax.random.key(7), 3)
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *many)
  together = jax.jit(
    jax.vmap(lambda s, k: select.top_k_mask(s, k, density=0.2))
  )(stacked, keys)
  one = jax.jit(lambda s, k: select.top_k_mask(s, k, density=0.2))
  for i in range(3):
    alone = one(many[i], keys[i])
    jax.tree.map(
      lambda t, a, i=i: np.testing.assert_array_equal(t[i], a), together, alone
    )


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({}, "either density or keep"),
    ({"density": 0.5, "keep": 3}, "either density or keep"),
    ({"density": 0.04}, "'c'.*at least 0.05"),
    ({"density": 0.5, "scope": "layers"}, "did you mean 'layer'"),
    ({"keep": 193}, "not in 0 ... 192"),
    ({"keep": {"c": 3}}, "does not fit"),
    ({"keep": {"a/kernel": 1, "b/kernel": 1, "c": 21}}, "does not fit"),
    ({"keep": 8, "min_per_layer": 3}, "takes 9 weights"),
  ],
)
def test_wrong_requests_are_user_errors(wrong, message):
  with pytest.raises(UserError, match=message):
    select.top_k_mask(scores(), jax.random.key(0), **wrong)
