"""Gather and scatter of kept weights against NumPy indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.masks import support, tree


def model(seed):
  rng = np.random.default_rng(seed)
  return {
    "a": {
      "bias": jnp.asarray(rng.normal(size=5), jnp.float32),
      "kernel": jnp.asarray(rng.normal(size=(7, 5)), jnp.float32),
    },
    "b": {"kernel": jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32)},
  }


def mask_of(seed, kept=20):
  flat = np.zeros(59, bool)
  flat[np.random.default_rng(seed).choice(59, kept, replace=False)] = True
  return tree.unravel(jnp.asarray(flat), tree.full_mask(model(0)))


def flat_np(t):
  return np.concatenate(
    [np.ravel(t["a"]["kernel"]), np.ravel(t["b"]["kernel"])]
  )


def test_gather_and_scatter_equal_boolean_indexing():
  params, mask = model(1), mask_of(2)
  kept = support.support_of(mask, 20)
  chosen = flat_np(mask)
  assert kept.index.dtype == jnp.int32
  np.testing.assert_array_equal(kept.index, np.flatnonzero(chosen))
  np.testing.assert_array_equal(kept.gather(params), flat_np(params)[chosen])

  values = jnp.arange(1, 21, dtype=jnp.float32)
  expected = np.zeros(59, np.float32)
  expected[chosen] = values
  delta = kept.scatter(values, params)
  np.testing.assert_array_equal(flat_np(delta), expected)
  np.testing.assert_array_equal(delta["a"]["bias"], np.zeros(5))
  placed = kept.place(values, params)
  np.testing.assert_array_equal(flat_np(placed), expected)
  np.testing.assert_array_equal(placed["a"]["bias"], params["a"]["bias"])


def test_round_trips():
  params, mask = model(1), mask_of(2)
  kept = support.support_of(mask, 20)
  jax.tree.map(
    np.testing.assert_array_equal,
    kept.place(kept.gather(params), params),
    tree.apply_mask(params, mask),
  )
  jax.tree.map(np.testing.assert_array_equal, kept.mask(params), mask)


def test_scatter_is_the_transpose_of_gather():
  params, kept = model(1), support.support_of(mask_of(2), 20)
  values = jnp.linspace(-1, 1, 20)
  _, pullback = jax.vjp(kept.gather, params)
  jax.tree.map(
    np.testing.assert_array_equal,
    pullback(values)[0],
    kept.scatter(values, params),
  )
  _, pullback = jax.vjp(lambda v: kept.scatter(v, params), values)
  np.testing.assert_array_equal(pullback(params)[0], kept.gather(params))


def test_vmap_over_seeds_equals_a_loop():
  masks = [mask_of(seed) for seed in range(4)]
  models = [model(seed) for seed in range(4)]

  def there_and_back(mask, params):
    kept = support.support_of(mask, 20)
    return kept, kept.place(2 * kept.gather(params), params)

  stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)  # noqa: E731
  together = jax.jit(jax.vmap(there_and_back))(stack(masks), stack(models))
  alone = stack(
    [there_and_back(*pair) for pair in zip(masks, models, strict=True)]
  )
  jax.tree.map(np.testing.assert_array_equal, together, alone)


@pytest.mark.parametrize("size", [19, 21])
def test_a_wrong_size_raises_where_it_can(size):
  with pytest.raises(ValueError, match="20 weights"):
    support.support_of(mask_of(2), size)


def test_a_support_that_is_too_long_pads_harmlessly_under_jit():
  params, mask = model(1), mask_of(2)
  kept = jax.jit(support.support_of, static_argnums=1)(mask, 23)
  np.testing.assert_array_equal(kept.gather(params)[20:], np.zeros(3))
  jax.tree.map(
    np.testing.assert_array_equal,
    kept.place(kept.gather(params), params),
    tree.apply_mask(params, mask),
  )
