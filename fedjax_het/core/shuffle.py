"""A random permutation evaluated one element at a time, without a sort.

A client's epoch needs "the examples in a random order", a batch at a time.
Sorting random keys costs O(R log R) per epoch and needs the epoch's order as
loop state, for every client of a chunk and padded to the largest of them.  The
swap-or-not shuffle instead maps position -> element directly: O(batch) work,
no state, any length known only at run time, and exactly a bijection.

References:
  V. T. Hoang, B. Morris, P. Rogaway: An Enciphering Scheme Based on a Card
  Shuffle, CRYPTO 2012, arXiv:1208.1176.
"""

import jax
import jax.numpy as jnp

from fedjax_het.core.types import Array, Key

# After r rounds a pair of elements is off uniform by about (3/4)^r: 24 rounds
# leave 1e-3, far below what the noise of stochastic gradients could show.
_ROUNDS = 24


def permute(key: Key, position: Array, length: Array) -> Array:
  """Element at `position` of a random permutation of 0..length-1.

  In round r with random offset K_r, an element i and its mirror
  j = K_r - i (mod length) are swapped iff a coin, drawn by hashing max(i, j),
  says so.  Both see the same coin, so each round is an involution.

  Args:
    key: typed PRNG key; one key is one permutation.
    position: i32[...], each in [0, length).
    length: i32[], at least 1.

  Returns:
    i32[...], the elements; distinct positions give distinct elements.
  """
  length = jnp.asarray(length, jnp.uint32)
  element = jnp.asarray(position, jnp.uint32)
  # Two words per round by hashing a counter: threefry would be half the time of
  # a small client's step, and a coin for a shuffle needs no cipher.
  first, second = jax.random.key_data(key)
  counter = jnp.arange(_ROUNDS, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
  offsets = hash32(hash32(counter ^ first) ^ second) % length
  salts = hash32(hash32(counter ^ second) + first)
  for r in range(_ROUNDS):
    mirror = jnp.where(
      element <= offsets[r],
      offsets[r] - element,
      offsets[r] + length - element,
    )
    coin = hash32(jnp.maximum(element, mirror) ^ salts[r]) >> jnp.uint32(31)
    element = jnp.where(coin == jnp.uint32(1), mirror, element)
  # Without the barrier XLA CPU of jax 0.11 fuses the rounds into the gather
  # that follows, once for each use of each round: it compiles for hours.
  return jax.lax.optimization_barrier(element.astype(jnp.int32))


def hash32(x: Array) -> Array:
  """The 32-bit finaliser of MurmurHash3: every input bit moves every output."""
  x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> jnp.uint32(16))
