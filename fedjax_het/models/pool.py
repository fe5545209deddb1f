"""Max-pooling that stays fast in a loop on CPU."""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array


@jax.custom_jvp
def max_pool(x: Array) -> Array:
  """The maximum over disjoint 2 x 2 windows.

  Strided slices and `maximum`, which XLA CPU vectorises, unlike
  `lax.reduce_window`; the gradient is one elementwise select.  Of equal
  values the first in row-major order gets the whole gradient, as in PyTorch
  and in `flax.linen.max_pool`.

  Args:
    x: [B, H, W, C]; an odd last row or column is dropped.

  Returns:
    [B, H // 2, W // 2, C].

  Raises:
    UserError: the image is smaller than a window.
  """
  x = _crop(x)
  rows = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


@max_pool.defjvp
def _max_pool_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  y = max_pool(x)
  equal = _windows(x) == y[:, :, None, :, None]
  place = 2 * lax.broadcasted_iota(jnp.int32, (1, 1, 2, 1, 2, 1), 2)
  place += lax.broadcasted_iota(jnp.int32, (1, 1, 2, 1, 2, 1), 4)
  earlier = jnp.zeros((), bool)
  for i in range(3):
    row, column = divmod(i, 2)
    found = equal[:, :, row : row + 1, :, column : column + 1]
    earlier = earlier | (found & (place > i))
  dx = _windows(dx)
  first = jnp.where(equal & ~earlier, dx, jnp.zeros((), dx.dtype))
  return y, first.sum((2, 4))


def _crop(x: Array) -> Array:
  _, height, width, _ = x.shape
  if min(height, width) < 2:
    raise UserError(
      f"max_pool needs images of 2 x 2 or more, got {height} x {width}: "
      "give larger images or fewer pooling layers"
    )
  return x[:, : height // 2 * 2, : width // 2 * 2]


def _windows(x: Array) -> Array:
  """[B, H, W, C] as [B, H/2, 2, W/2, 2, C]."""
  x = _crop(x)
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2, channels)
