"""A sparse vector on the wire: what is zero does not travel.

Its only leaf is the float vector itself, zeros included, so that the plain
`reduce.weighted_mean`, clipping and noise (`privacy`) take it like any message.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_het.core.types import Array
from fedjax_het.masks.sparse_wire import SparseValues


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NonZeros:
  """The non-zero entries of a float32 vector, and where they are.

  4 bytes a value, and in each segment 4 bytes and the shorter of a bitmap and
  a list of positions (`sparse_wire`); nothing at all if everything is zero.

  values: f32[P].
  sizes: P_l of each segment; they add up to P.
  """

  values: Array
  sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  def wire_nbytes(self) -> Array:
    return self._sparse().wire_nbytes()

  def to_bytes(self) -> bytes:
    return self._sparse().to_bytes()

  def from_bytes(self, data: bytes) -> "NonZeros":
    return NonZeros(self._sparse().from_bytes(data).values, self.sizes)

  def _sparse(self) -> SparseValues:
    return SparseValues(
      self.values, self.values != 0, jnp.bool_(True), self.sizes
    )
