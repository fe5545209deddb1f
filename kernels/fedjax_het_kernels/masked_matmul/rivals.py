"""Other ways to the masked product, for the benchmark only.

A variant is (prepare, run): `prepare` turns the inputs of `specs.inputs` into
the arguments of `run` and is not timed.  The first one is ours.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.masked_matmul.op import masked_matmul, unpack_rows

CHUNK = 32  # clients with dense weights at a time


def variants(spec):
  """Name -> (prepare, run) for products of `spec`."""

  def same(x, weights, bits):
    return x, weights, bits

  def dense(weights, bits):
    return jnp.where(unpack_rows(bits, spec.rows), weights, -weights)

  def all_dense(weights, bits):
    return jax.vmap(functools.partial(dense, weights))(bits)

  def multiply(x, dense):
    if spec.shared:  # else XLA:CPU transposes the dense weights
      x = jnp.broadcast_to(x, (spec.clients, *x.shape))
    product = jnp.einsum(
      "nbk,nkm->nbm", x, dense, preferred_element_type=jnp.float32
    )
    return product.astype(x.dtype)

  def unpacked(x, weights, bits):
    return multiply(x, all_dense(weights, bits))

  def in_chunks(x, weights, bits):
    if spec.shared:
      return lax.map(
        lambda bits: x @ dense(weights, bits), bits, batch_size=CHUNK
      )
    return lax.map(
      lambda own: own[0] @ dense(weights, own[1]), (x, bits), batch_size=CHUNK
    )

  def to_dense(x, weights, bits):
    return x, all_dense(weights, bits)

  return {
    "ours": (same, masked_matmul),
    "ours in plain JAX": (
      same,
      functools.partial(masked_matmul, implementation="xla"),
    ),
    "unpack all, einsum": (same, unpacked),
    f"unpack {CHUNK} clients at a time": (same, in_chunks),
    "dense weights given": (to_dense, multiply),
  }
