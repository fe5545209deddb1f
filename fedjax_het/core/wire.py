"""What travels: bytes counted from the actual message, and the real encoder.

A message is a pytree.  An array leaf costs its dtype times its elements.
Anything smarter (packed signs, small integers) is a pytree node that follows
the `WireType` protocol and knows its own size; `encode` really writes the
bytes, and the tests hold `nbytes(m) == len(encode(m))`.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, PyTree


@runtime_checkable
class WireType(Protocol):
  """A pytree node with its own encoding."""

  def wire_nbytes(self) -> int | Array:
    """Bytes on the wire of one (unbatched) message."""

  def to_bytes(self) -> bytes:
    """The bytes themselves; concrete values only."""

  def from_bytes(self, data: bytes) -> PyTree:
    """The inverse of `to_bytes`; `self` gives shapes only."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Known:
  """Something that both sides hold since set-up: nothing travels in a round.

  tree: the values.
  setup_bytes: what it cost once per client, e.g. 8 for a 64-bit seed from
    which the client rebuilds it.
  """

  tree: PyTree
  setup_bytes: int = dataclasses.field(metadata={"static": True})

  def wire_nbytes(self) -> int:
    return 0

  def to_bytes(self) -> bytes:
    return b""

  def from_bytes(self, data: bytes) -> "Known":
    del data
    return self


def nbytes(message: PyTree) -> int | Array:
  """Bytes that `message` takes on the wire; static unless a type says not."""
  return sum((_leaf_nbytes(leaf) for leaf in _leaves(message)), 0)


def setup_nbytes(message: PyTree) -> int:
  """Bytes that a client receives once, before the first round."""
  return sum(
    leaf.setup_bytes for leaf in _leaves(message) if isinstance(leaf, Known)
  )


def encode(message: PyTree) -> bytes:
  """Writes a concrete message as bytes, leaf by leaf, little-endian."""
  return b"".join(
    leaf.to_bytes()
    if isinstance(leaf, WireType)
    else np.ascontiguousarray(leaf).tobytes()
    for leaf in _leaves(message)
  )


def decode(data: bytes, like: PyTree) -> PyTree:
  """Reads what `encode` wrote.

  Args:
    data: the bytes.
    like: a message of the same structure, shapes and dtypes.

  Returns:
    The message, with NumPy leaves where `like` has plain arrays.

  Raises:
    UserError: `data` is not as long as `like` takes.
  """
  expected = int(nbytes(like))
  if len(data) != expected:
    raise UserError(
      f"a message of {len(data)} bytes, but this algorithm's takes {expected}: "
      "sender and receiver run different configurations"
    )
  leaves, treedef = jax.tree.flatten(like, is_leaf=_is_wire)
  out, start = [], 0
  for leaf in leaves:
    size = int(_leaf_nbytes(leaf))
    part, start = data[start : start + size], start + size
    if isinstance(leaf, WireType):
      out.append(leaf.from_bytes(part))
    else:
      out.append(np.frombuffer(part, leaf.dtype).reshape(leaf.shape))
  return jax.tree.unflatten(treedef, out)


def _is_wire(node: PyTree) -> bool:
  return isinstance(node, WireType)


def _leaves(message: PyTree) -> list:
  return jax.tree.leaves(message, is_leaf=_is_wire)


def _leaf_nbytes(leaf) -> int | Array:
  if isinstance(leaf, WireType):
    return leaf.wire_nbytes()
  return leaf.size * leaf.dtype.itemsize
