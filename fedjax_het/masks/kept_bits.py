"""Bits of some of the weights, for a receiver that knows which."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptBits:
  """One bit a kept weight, ceil(n / 8) bytes for n of them.

  In memory both are vectors over all P maskable weights, so that shapes do not
  depend on how many are kept; where they are does not travel.

  bits: bool[P], False where nothing is kept;  kept: bool[P].
  """

  bits: Array
  kept: Array

  def wire_nbytes(self) -> Array:
    return (jnp.sum(self.kept, dtype=jnp.int32) + 7) // 8

  def to_bytes(self) -> bytes:
    bits = np.asarray(self.bits)[np.asarray(self.kept)]
    return np.packbits(bits, bitorder="little").tobytes()

  def from_bytes(self, data: bytes) -> "KeptBits":
    """Reads the bits; `self` gives their positions."""
    kept = np.asarray(self.kept)
    bits = np.zeros(kept.size, bool)
    bits[kept] = np.unpackbits(
      np.frombuffer(data, np.uint8), count=int(kept.sum()), bitorder="little"
    )
    return KeptBits(jnp.asarray(bits), self.kept)
