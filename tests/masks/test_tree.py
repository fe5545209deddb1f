"""Mask trees against NumPy on a small flax network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_het.core.errors import UserError
from fedjax_het.masks import tree


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(x))
    x = nn.LayerNorm()(x)
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def params():
  return Net().init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))


def random_mask(key, params):
  drawn = jax.tree.map(
    lambda p: jnp.asarray(np.random.default_rng(key).random(p.shape) < 0.3),
    params,
  )
  return jax.tree.map(
    lambda m, use: m if use else jnp.ones_like(m), drawn, tree.maskable(params)
  )


def test_kernels_are_maskable_and_everything_else_is_dense(params):
  found = tree.maskable(params)["params"]
  assert found == {
    "Conv_0": {"kernel": True, "bias": False},
    "LayerNorm_0": {"scale": False, "bias": False},
    "Dense_0": {"kernel": True, "bias": False},
  }
  assert tree.layer_shapes(params) == {
    "params/Conv_0/kernel": (3, 3, 2, 4),
    "params/Dense_0/kernel": (64, 3),
  }
  assert tree.num_maskable(params) == 72 + 192


def test_densities_count_kernels_only(params):
  mask = random_mask(1, params)
  conv = np.asarray(mask["params"]["Conv_0"]["kernel"])
  dense = np.asarray(mask["params"]["Dense_0"]["kernel"])
  assert int(tree.num_kept(mask)) == conv.sum() + dense.sum()
  np.testing.assert_allclose(
    tree.density(mask), (conv.sum() + dense.sum()) / 264, rtol=1e-6
  )
  each = tree.layer_density(mask)
  np.testing.assert_allclose(each["params/Conv_0/kernel"], conv.mean(), 1e-6)
  np.testing.assert_allclose(each["params/Dense_0/kernel"], dense.mean(), 1e-6)
  assert float(tree.density(tree.full_mask(params))) == 1


def test_apply_mask_zeroes_even_what_is_not_finite(params):
  mask = random_mask(1, params)
  broken = jax.tree.map(
    lambda p, m: jnp.where(m, p, jnp.full_like(p, -jnp.nan)), params, mask
  )
  masked = tree.apply_mask(broken, mask)
  for p, m, out in zip(
    *map(jax.tree.leaves, (params, mask, masked)), strict=True
  ):
    expected = np.where(m, p, np.float32(0))
    np.testing.assert_array_equal(out, expected)
    assert not np.signbit(np.asarray(out)[~np.asarray(m)]).any()


def test_ravel_is_c_order_and_unravel_its_inverse(params):
  flat = tree.ravel(params)
  inner = params["params"]
  np.testing.assert_array_equal(
    flat,
    np.concatenate(
      [
        np.ravel(inner["Conv_0"]["kernel"]),
        np.ravel(inner["Dense_0"]["kernel"]),
      ]
    ),
  )
  jax.tree.map(
    np.testing.assert_array_equal, tree.unravel(flat, params), params
  )
  replaced = tree.unravel(jnp.arange(264), params)
  assert replaced["params"]["Dense_0"]["kernel"].dtype == jnp.int32
  np.testing.assert_array_equal(
    replaced["params"]["LayerNorm_0"]["scale"], inner["LayerNorm_0"]["scale"]
  )


def test_empty_layers_are_found_and_named(params):
  mask = tree.full_mask(params)
  assert bool(tree.no_layer_empty(mask))
  tree.check_no_layer_empty(mask)
  mask["params"]["Dense_0"]["kernel"] = jnp.zeros((64, 3), bool)
  assert not bool(tree.no_layer_empty(mask))
  with pytest.raises(UserError, match="params/Dense_0/kernel"):
    tree.check_no_layer_empty(mask)


def test_vmap_over_seeds_sees_one_model_at_a_time(params):
  masks = [random_mask(seed, params) for seed in range(3)]
  masks[1]["params"]["Conv_0"]["kernel"] = jnp.zeros((3, 3, 2, 4), bool)
  stacked = jax.tree.map(lambda *m: jnp.stack(m), *masks)
  np.testing.assert_array_equal(
    jax.jit(jax.vmap(tree.num_kept))(stacked),
    [int(tree.num_kept(m)) for m in masks],
  )
  np.testing.assert_array_equal(
    jax.vmap(tree.no_layer_empty)(stacked), [True, False, True]
  )


def test_a_model_without_kernels_is_a_user_error():
  with pytest.raises(UserError, match="no weight matrix"):
    tree.ravel({"bias": jnp.zeros(3)})
