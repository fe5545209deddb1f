"""A part of the parameters as a message, and the mean over those who hold it.

In memory a part is a full tree, zero outside a mask, so that its shapes do not
depend on who holds how much; on the wire only what is inside costs anything.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core import reduce
from fedjax_het.core.types import Array, PyTree, Reducer
from fedjax_het.masks import tree as mask_tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptValues:
  """The values inside a mask: their dtype each, after the bytes of `note`.

  The mask itself never travels: the receiver knows it (from the client's rate
  and the number of the round), or the note says it.

  values: float tree, 0 outside the mask;  mask: bool tree like it.
  note: u8[n], what the receiver needs to rebuild the mask, e.g. one bit a
    block; u8[0] if nothing.
  """

  values: PyTree
  mask: PyTree
  note: Array

  def wire_nbytes(self) -> Array:
    sizes = [
      jnp.sum(mask, dtype=jnp.uint32) * jnp.uint32(values.dtype.itemsize)
      for values, mask in self._leaves()
    ]
    return sum(sizes, jnp.uint32(self.note.size))

  def to_bytes(self) -> bytes:
    parts = [
      np.asarray(values)[np.asarray(mask)].tobytes()
      for values, mask in self._leaves()
    ]
    return b"".join([np.asarray(self.note).tobytes(), *parts])

  def from_bytes(self, data: bytes) -> "KeptValues":
    """Reads the values; `self` gives the mask, which the receiver has."""
    start, leaves = self.note.size, []
    note = jnp.asarray(np.frombuffer(data[:start], np.uint8))
    for values, mask in self._leaves():
      leaf = np.zeros(values.shape, values.dtype)
      kept = np.asarray(mask)
      size = int(kept.sum()) * leaf.itemsize
      leaf[kept] = np.frombuffer(data[start : start + size], leaf.dtype)
      start += size
      leaves.append(jnp.asarray(leaf))
    values = jax.tree.unflatten(jax.tree.structure(self.values), leaves)
    return KeptValues(values, self.mask, note)

  def _leaves(self):
    pairs = jax.tree.leaves(self.values), jax.tree.leaves(self.mask)
    return zip(*pairs, strict=True)


def kept_values(
  tree: PyTree, mask: PyTree, note: Array | None = None
) -> KeptValues:
  """What of `tree` is inside `mask`; `note` bool[n] travels as n bits."""
  bits = jnp.zeros(0, jnp.uint8) if note is None else jnp.packbits(note)
  return KeptValues(mask_tree.apply_mask(tree, mask), mask, bits)


def holders_mean() -> Reducer:
  """The weighted mean of each coordinate over the clients that hold it.

  Returns:
    A `Reducer` over `KeptValues`; `finish` gives a tree, 0 where nobody holds
    anything: of changes, "the old value stays".
  """
  pair = reduce.overlap_mean()
  return Reducer(
    zero=lambda message: pair.zero((message.values, message.mask)),
    add=lambda acc, messages, weights: pair.add(
      acc, (messages.values, messages.mask), weights
    ),
    merge=pair.merge,
    finish=lambda acc: pair.finish(acc)[0],
  )


def everybody_mean() -> Reducer:
  """The plain weighted mean: who does not hold a coordinate changed it by 0."""
  mean = reduce.weighted_mean()
  return mean._replace(
    zero=lambda message: mean.zero(message.values),
    add=lambda acc, messages, weights: mean.add(acc, messages.values, weights),
  )
