"""Draws without replacement, rescaling and sketches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.selection._draw import gumbel_top, rescale
from fedjax_het.selection._sketch import sketch

DRAWS = 20_000


def drawn(log_weight, size, online=None):
  keys = jax.random.split(jax.random.key(0), DRAWS)
  return np.asarray(
    jax.vmap(lambda key: gumbel_top(key, log_weight, size, online))(keys)
  )


def test_draws_are_by_weight_without_replacement():
  weight = np.array([0.5, 0.3, 0.15, 0.05])
  got = drawn(jnp.log(jnp.asarray(weight, jnp.float32)), 2)
  for first, second in itertools.permutations(range(4), 2):
    # one after another, by weight among those that are left
    want = weight[first] * weight[second] / (1 - weight[first])
    share = ((got[:, 0] == first) & (got[:, 1] == second)).mean()
    assert abs(share - want) < 5 * (want * (1 - want) / DRAWS) ** 0.5


def test_the_offline_come_last():
  online = jnp.asarray([True, False, True, False, False])
  weight = jnp.asarray([0.0, 5.0, -jnp.inf, 0.0, 0.0])
  got = drawn(weight, 3, online)
  np.testing.assert_array_equal(np.sort(got[:, :2]), [[0, 2]] * DRAWS)
  assert set(got[:, 2]) == {1, 3, 4}


def test_rescale():
  values = jnp.asarray([3.0, -1.0, 100.0, 1.0])
  real = jnp.asarray([True, True, False, True])
  np.testing.assert_allclose(
    np.asarray(rescale(values, real))[[0, 1, 3]], [1, 0, 0.5]
  )
  assert not np.any(rescale(jnp.ones(3), jnp.ones(3, bool)))
  assert not np.any(rescale(values, jnp.zeros(4, bool)))


def test_sketches_keep_inner_products():
  rng = np.random.default_rng(0)
  size, errors = 256, []
  for _ in range(40):
    x = rng.normal(size=3000)
    y = 0.6 * x + 0.8 * rng.normal(size=3000)

    def tree(v):
      v = v.astype(np.float32)
      return {"a": v[:1000].reshape(50, 20), "b": v[1000:], "n": np.int32(3)}

    s, t = (np.asarray(sketch(tree(v), size)) for v in (x, y))
    norms = np.linalg.norm(x) * np.linalg.norm(y)
    errors.append((s @ t - x @ y) / norms)
    together = np.asarray(sketch(tree(2 * x - y), size))
    np.testing.assert_allclose(together, 2 * s - t, rtol=1e-4, atol=1e-3)
  errors = np.array(errors)
  assert errors.std() < (2 / size) ** 0.5 * 1.3
  assert abs(errors.mean()) < 4 * (2 / size / 40) ** 0.5


def test_a_sketch_needs_floats():
  with pytest.raises(UserError, match="hold no floats"):
    sketch({"votes": jnp.zeros(4, jnp.uint32)}, 8)
