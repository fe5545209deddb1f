"""Masked products in plain JAX: one client's dense weights at a time.

On a CPU that is as fast as a batch of dense weights that are already there:
the matrix product takes the time, and the weights of one client stay in cache.
Elsewhere a loop of small products would wait for launches, so several clients
go at once, as many as fit a fixed temporary.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.layout import BITS
from fedjax_het_kernels.pack_signs.xla import single_bits

TEMPORARY = 64 * 2**20  # bytes of dense weights at once, except on a CPU


def pack_rows(bits: jax.Array) -> jax.Array:
  """bool[..., K, M] -> u32[..., ceil(K / 32), M]."""
  *batch, rows, columns = bits.shape
  words = -(-rows // BITS)
  pad = [(0, 0)] * len(batch) + [(0, words * BITS - rows), (0, 0)]
  planes = jnp.pad(bits, pad).reshape(*batch, words, BITS, columns)
  packed = jnp.zeros((*batch, words, columns), jnp.uint32)
  # A sum over the axis of the bits takes XLA:CPU 15 times as long.
  for j in range(BITS):
    packed |= planes[..., j, :].astype(jnp.uint32) << j
  return packed


def unpack_rows(words: jax.Array, rows: int) -> jax.Array:
  """u32[..., ceil(K / 32), M] -> bool[..., K, M]."""
  *batch, count, columns = words.shape
  bits = (words[..., :, None, :] & single_bits(words.ndim + 1)) != 0
  return bits.reshape(*batch, count * BITS, columns)[..., :rows, :]


def matmul(
  x: jax.Array,
  weights: jax.Array,
  bits: jax.Array,
  *,
  transposed: bool,
  signed: bool,
  precision: str,
) -> tuple[jax.Array]:
  """The op: see `op.MATMUL`."""

  def one(x, bits):
    axis = 1 if transposed else 0
    return _dot(x, masked(weights, bits, signed), (1, axis), precision)

  return (_each_client(one, x, bits, size=weights.size),)


def ste_update(
  x: jax.Array,
  grad: jax.Array,
  weights: jax.Array,
  scores: jax.Array,
  rate: jax.Array,
  *,
  precision: str,
) -> tuple[jax.Array, jax.Array]:
  """The op: see `op.STE_UPDATE`."""
  scale = rate[0] * weights.astype(jnp.float32)

  def one(x, grad, scores):
    outer = _dot(x, grad, (0, 0), precision, jnp.float32)
    new = (scores.astype(jnp.float32) - scale * outer).astype(scores.dtype)
    return new, pack_rows(new >= 0)

  return _each_client(one, x, grad, scores, size=weights.size)


def score_gradient(x, grad, weights, dtype, precision) -> jax.Array:
  """(x[n]^T grad[n]) * weights: [N, K, M] of `dtype`."""

  def one(x, grad):
    outer = _dot(x, grad, (0, 0), precision, jnp.float32)
    return (outer * weights.astype(jnp.float32)).astype(dtype)

  return _each_client(one, x, grad, size=weights.size)


def weight_gradient(x, grad, weights, bits, signed, precision) -> jax.Array:
  """sum_n (x[n]^T grad[n]) under the mask: [K, M] of the weights' dtype."""
  if 0 in bits.shape:
    return jnp.zeros_like(weights)
  shared = x.ndim == 2

  def add(total, client):
    x_n, grad, bits = (x, *client) if shared else client
    outer = _dot(x_n, grad, (0, 0), precision, jnp.float32)
    return total + masked(outer, bits, signed), None

  # Always 0, but under shard_map it varies as the clients do, which the carry
  # of a loop has to from the start.
  zero = jnp.where(bits[0, 0, 0] != bits[0, 0, 0], jnp.float32(1), 0)
  start = jnp.zeros(weights.shape, jnp.float32) + zero
  clients = (grad, bits) if shared else (x, grad, bits)
  return lax.scan(add, start, clients)[0].astype(weights.dtype)


def masked(values: jax.Array, bits: jax.Array, signed: bool) -> jax.Array:
  """values [K, M], negated (signed) or 0 where their bit is 0."""
  other = -values if signed else jnp.zeros_like(values)
  return jnp.where(unpack_rows(bits, values.shape[0]), values, other)


def _dot(left, right, axes, precision, dtype=None) -> jax.Array:
  """Contracts one axis of each, adds in float32, rounds to dtype or left's."""
  product = lax.dot_general(
    left,
    right,
    (((axes[0],), (axes[1],)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
  return product.astype(dtype or left.dtype)


def _each_client(function, x, *others, size: int):
  """Maps over clients; x [B, K] is shared by all, x [N, B, K] is not.

  size: dense weights that the function makes.
  """
  shared = x.ndim == 2

  def one(client):
    return function(x, *client) if shared else function(*client)

  clients = others if shared else (x, *others)
  at_once = max(1, TEMPORARY // max(1, 4 * size))

  def cpu(*clients):
    return lax.map(one, clients)

  def elsewhere(*clients):
    return lax.map(one, clients, batch_size=at_once)

  return lax.platform_dependent(*clients, cpu=cpu, default=elsewhere)
