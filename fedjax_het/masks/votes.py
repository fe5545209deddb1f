"""Signs on the wire: 1 bit a kept weight up, a mean, count or vote down."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_het_kernels as kernels
from fedjax_het.core.types import Array, Reducer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedSigns:
  """Signs in planar words: 1 bit each, ceil(size / 8) bytes on the wire.

  words: u32[W] (`fedjax_het_kernels.pack_signs`); bit 1 is +1.
  size: how many signs.
  """

  words: Array
  size: int = dataclasses.field(metadata={"static": True})

  def unpack(self) -> Array:
    """f32[size] in {-1, +1}."""
    return kernels.unpack_signs(self.words, self.size)

  def wire_nbytes(self) -> int:
    return -(-self.size // 8)

  def to_bytes(self) -> bytes:
    bits = np.asarray(self.unpack()) > 0
    return np.packbits(bits, bitorder="little").tobytes()

  def from_bytes(self, data: bytes) -> "PackedSigns":
    bits = np.unpackbits(
      np.frombuffer(data, np.uint8), count=self.size, bitorder="little"
    )
    return pack(jnp.asarray(bits, jnp.float32) * 2 - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
  """Integers in 0..upper, ceil(log2(upper + 1)) bits each on the wire.

  values: i32[n];  upper: the largest possible value, e.g. the cohort size.
  """

  values: Array
  upper: int = dataclasses.field(metadata={"static": True})

  def wire_nbytes(self) -> int:
    return -(-self.values.size * self.upper.bit_length() // 8)

  def to_bytes(self) -> bytes:
    shift = np.arange(self.upper.bit_length())
    bits = (np.asarray(self.values)[:, None] >> shift) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()

  def from_bytes(self, data: bytes) -> "Counts":
    width, n = self.upper.bit_length(), self.values.size
    bits = np.unpackbits(
      np.frombuffer(data, np.uint8), count=n * width, bitorder="little"
    )
    values = (bits.reshape(n, width) << np.arange(width)).sum(axis=1)
    return Counts(jnp.asarray(values, jnp.int32), self.upper)


def pack(signs: Array) -> PackedSigns:
  """Packs f32[n] by sign, with sgn(0) = +1."""
  return PackedSigns(kernels.pack_signs(signs), signs.shape[-1])


def sign_mean() -> Reducer:
  """sum_k w_k b_k / sum_k w_k over packed signs b_k in {-1, +1}.

  Sample counts as weights stay exact integers in float32 up to a total of
  2^24, so the result does not depend on order, chunks or devices at all.

  Returns:
    A `Reducer` over `PackedSigns`; `finish` gives (mean f32[size],
    weight f32[]), zeros where there is no weight.
  """

  def zero(message):
    return jnp.zeros(message.size), jnp.float32(0)

  def add(acc, messages, weights):
    votes, weight = acc
    votes = kernels.accumulate_votes(votes, messages.words, weights)
    return votes, weight + jnp.sum(weights)

  def finish(acc):
    votes, weight = acc
    return votes / jnp.where(weight > 0, weight, 1.0), weight

  return Reducer(zero, add, lambda a, b: jax.tree.map(jnp.add, a, b), finish)
