"""Other ways to the weighted mean sign, for the benchmark only.

A variant is (prepare, run): `prepare` turns the inputs of `specs.inputs` into
the arguments of `run` and is not timed.  The first one is ours.
"""

import functools

import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.pack_signs.op import unpack_signs
from fedjax_het_kernels.sign_votes.op import sign_votes


def variants(spec):
  """Name -> (prepare, run) for weighted means of `spec`."""
  ours = functools.partial(sign_votes, size=spec.size)
  unpack = functools.partial(unpack_signs, size=spec.size)

  def same(words, weights):
    return words, weights

  def to_float(words, weights):
    if weights is None:
      return words, jnp.ones(spec.clients)
    return words, weights.astype(jnp.float32)

  def to_dense(words, weights):
    words, weights = to_float(words, weights)
    return unpack(words), weights

  def einsum(words, weights):
    votes = jnp.einsum("n,np->p", weights, unpack(words), precision="highest")
    return votes / weights.sum()

  def multiply_sum(words, weights):
    return (weights[:, None] * unpack(words)).sum(axis=0) / weights.sum()

  def dense_mean(signs, weights):
    votes = jnp.matmul(weights, signs, precision=lax.Precision.HIGHEST)
    return votes / weights.sum()

  def to_uint16(words, weights):
    return words, weights.astype(jnp.uint16)

  small = {"ours, uint16": (to_uint16, ours)} if spec.weights == "int" else {}
  return {
    "ours": (same, ours),
    **small,
    "ours, float weights": (to_float, ours),
    "ours in plain JAX": (same, functools.partial(ours, implementation="xla")),
    "unpack, multiply, sum (fuses on a GPU)": (to_float, multiply_sum),
    "unpack, einsum": (to_float, einsum),
    "dense float32 signs": (to_dense, dense_mean),
  }
