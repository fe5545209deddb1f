"""max_pool against NumPy, and its gradient where values are equal."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.models import max_pool


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_values_and_gradient(size):
  """Few distinct values: most windows have ties."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 3, (2, *size, 3)).astype(np.float32)
  g = rng.standard_normal((2, size[0] // 2, size[1] // 2, 3)).astype(np.float32)
  y, expected = np.zeros_like(g), np.zeros_like(x)
  for b, i, j, c in np.ndindex(*g.shape):
    window = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
    y[b, i, j, c] = window.max()
    row, column = divmod(int(window.argmax()), 2)  # the first of equals
    expected[b, 2 * i + row, 2 * j + column, c] = g[b, i, j, c]
  actual, pull = jax.vjp(max_pool, x)
  np.testing.assert_array_equal(actual, y)
  np.testing.assert_array_equal(pull(g)[0], expected)


def test_ties_as_in_flax():
  x = jnp.zeros((1, 4, 4, 2))

  def gradient(pool):
    return jax.grad(lambda x: jnp.sum(pool(x)))(x)

  flax = gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
  np.testing.assert_array_equal(gradient(max_pool), flax)


def test_forward_mode_and_vmap():
  x, dx = jax.random.normal(jax.random.key(0), (2, 3, 2, 4, 4, 2))
  y, dy = jax.vmap(lambda x, dx: jax.jvp(max_pool, (x,), (dx,)))(x, dx)
  step = 1e-3 * dx
  difference = (
    jax.vmap(max_pool)(x + step) - jax.vmap(max_pool)(x - step)
  ) / 2e-3
  assert y.shape == dy.shape == (3, 2, 2, 2, 2)
  np.testing.assert_allclose(dy, difference, atol=1e-2)


def test_too_small():
  with pytest.raises(UserError, match="2 x 2"):
    max_pool(jnp.zeros((1, 1, 4, 1)))
