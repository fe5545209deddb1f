"""Other ways to a dense sum; see sign_votes/rivals.py."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.sparse_sum.op import sparse_sum


def variants(spec):
  """Name -> (prepare, run)."""
  ours = functools.partial(sparse_sum, size=spec.size)

  def same(index, value, weight):
    return index, value, weight

  def without_nan(index, value, weight):
    if weight is None:
      weight = jnp.ones(spec.clients)
    value = jnp.where(weight[:, None] == 0, jnp.float32(0), value)
    return jnp.where(index < 0, jnp.int32(spec.size), index), value, weight

  def scatter(index, value, weight):
    terms = (weight[:, None] * value).reshape(-1)
    zeros = jnp.zeros(spec.size)
    return zeros.at[index.reshape(-1)].add(terms, mode="drop")

  def densify(index, value, weight):
    zeros = jnp.zeros(spec.size)
    dense = jax.vmap(lambda i, v: zeros.at[i].add(v, mode="drop"))(index, value)
    return jnp.matmul(weight, dense, precision=lax.Precision.HIGHEST)

  return {
    "ours": (same, ours),
    "ours, deterministic": (
      same,
      functools.partial(ours, deterministic=True),
    ),
    "one scatter": (without_nan, scatter),
    "densify": (without_nan, densify),
  }
