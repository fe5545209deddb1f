"""Kept weights and their positions on the wire, layer by layer.

In memory both are vectors over all P maskable weights, so that shapes do not
depend on how many are kept; on the wire only what is kept costs anything.  The
positions in a layer of P_l weights travel as a bitmap, P_l bits, or as a list,
b_l = ceil(log2 P_l) bits each, whichever is shorter.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.types import Array, PyTree
from fedjax_het.masks import tree as mask_tree

_HEAD = 4  # bytes a layer: how many positions follow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseValues:
  """Float32 values at some positions of the maskable weights.

  Up or down: 4 bytes a value; with positions that the receiver does not know,
  in each layer 4 bytes and min(P_l, k_l b_l) bits for k_l of them; nothing at
  all if there is no value.

  values: f32[P], 0 where nothing is kept;  kept: bool[P].
  new: bool[], whether the positions travel too.
  sizes: P_l of each layer.
  """

  values: Array
  kept: Array
  new: Array
  sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  def wire_nbytes(self) -> Array:
    counts = _per_layer(self.kept, self.sizes)
    bits = [
      jnp.minimum(size, count * _width(size))
      for size, count in zip(self.sizes, counts, strict=True)
    ]
    total = sum(counts)
    where = sum(_HEAD + _bytes(b) for b in bits)
    return 4 * total + jnp.where(self.new & (total > 0), where, 0)

  def to_bytes(self) -> bytes:
    kept = np.asarray(self.kept)
    parts = []
    if bool(self.new) and kept.any():
      for part in _split(kept, self.sizes):
        listed, width = np.flatnonzero(part), _width(part.size)
        bitmap = part.size <= listed.size * width
        parts.append(np.array([listed.size], "<u4").tobytes())
        parts.append(_packed(part if bitmap else _bits(listed, width)))
    values = np.asarray(self.values)[kept].astype("<f4")
    return b"".join([*parts, values.tobytes()])

  def from_bytes(self, data: bytes) -> "SparseValues":
    """Reads them; `self` gives the positions that the receiver knows."""
    kept = np.asarray(self.kept)
    if bool(self.new):
      kept, data = _read_positions(data, self.sizes)
    values = np.zeros(kept.size, np.float32)
    values[kept] = np.frombuffer(data, "<f4")
    return SparseValues(
      jnp.asarray(values), jnp.asarray(kept), self.new, self.sizes
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskNews:
  """The present mask, for a receiver that may have an old one.

  Nothing if nothing is stale.  Otherwise in each layer 4 bytes, and the
  shortest of P_l bits, n_l b_l bits for its n_l kept weights, and s_l (b_l + 1)
  bits for its s_l stale ones (position, and whether it is kept now).

  kept: bool[P], the present mask;  stale: bool[P], where the receiver's may be
  another.  sizes: P_l of each layer.
  """

  kept: Array
  stale: Array
  sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  def wire_nbytes(self) -> Array:
    rows = zip(
      self.sizes,
      _per_layer(self.kept, self.sizes),
      _per_layer(self.stale, self.sizes),
      strict=True,
    )
    total = sum(
      _HEAD + _bytes(functools.reduce(jnp.minimum, _forms(*row)))
      for row in rows
    )
    return jnp.where(jnp.any(self.stale), total, 0)

  def to_bytes(self) -> bytes:
    kept, stale = np.asarray(self.kept), np.asarray(self.stale)
    if not stale.any():
      return b""
    parts = []
    layers = (_split(kept, self.sizes), _split(stale, self.sizes))
    for now, old in zip(*layers, strict=True):
      width = _width(now.size)
      forms = _forms(now.size, int(now.sum()), int(old.sum()))
      form = int(np.argmin(forms))
      if form == _BITMAP:
        count, bits = 0, now
      elif form == _LIST:
        count, bits = int(now.sum()), _bits(np.flatnonzero(now), width)
      else:
        where = np.flatnonzero(old)
        count = where.size
        bits = _bits(2 * where + now[where], width + 1)
      parts.append(np.array([4 * count + form], "<u4").tobytes())
      parts.append(_packed(bits))
    return b"".join(parts)

  def from_bytes(self, data: bytes) -> "MaskNews":
    """Brings `self.kept`, the mask that the receiver has, up to date."""
    layers = list(_split(np.array(self.kept), self.sizes))
    for now in layers if data else ():
      head, data = int(np.frombuffer(data, "<u4", 1)[0]), data[_HEAD:]
      count, form = divmod(head, 4)
      width = _width(now.size)
      if form == _BITMAP:
        bits, data = _unpacked(data, now.size)
        now[:] = bits
      elif form == _LIST:
        bits, data = _unpacked(data, count * width)
        now[:] = False
        now[_numbers(bits, width)] = True
      else:
        bits, data = _unpacked(data, count * (width + 1))
        found = _numbers(bits, width + 1)
        now[found // 2] = found % 2 == 1
    kept = jnp.asarray(np.concatenate(layers))
    return MaskNews(kept, self.stale, self.sizes)


_BITMAP, _LIST, _PATCH = range(3)


def layer_sizes(params: PyTree) -> tuple[int, ...]:
  """P_l of each layer, in flat order."""
  return tuple(leaf.size for leaf in mask_tree.layers(params).values())


def sparse_values(
  tree: PyTree, mask: PyTree, *, new: Array | bool
) -> SparseValues:
  """The maskable leaves of `tree` where `mask` is True.

  Args:
    tree: like the parameters.
    mask: bool tree like it.
    new: bool[], whether the receiver has to be told the positions.
  """
  kept = mask_tree.ravel(mask)
  values = jnp.where(kept, mask_tree.ravel(tree), 0.0)
  return SparseValues(values, kept, jnp.asarray(new), layer_sizes(tree))


def mask_nbytes(mask: PyTree) -> int:
  """Bytes of a concrete mask for a receiver that has none."""
  kept = mask_tree.ravel(mask)
  news = MaskNews(kept, jnp.ones_like(kept), layer_sizes(mask))
  return int(news.wire_nbytes())


def _forms(size, kept, stale) -> list:
  """Bits of one layer's mask as a bitmap, as a list and as a patch."""
  width = _width(size)
  return [size, kept * width, stale * (width + 1)]


def _width(size: int) -> int:
  """b_l, bits of one position."""
  return max(1, (size - 1).bit_length())


def _bytes(bits):
  return (bits + 7) // 8


def _split(flat, sizes) -> list:
  ends = list(itertools.accumulate(sizes))
  return [flat[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _per_layer(flags: Array, sizes) -> list[Array]:
  return [jnp.sum(part, dtype=jnp.int32) for part in _split(flags, sizes)]


def _bits(numbers: np.ndarray, width: int) -> np.ndarray:
  return ((numbers[:, None] >> np.arange(width)) & 1).reshape(-1)


def _numbers(bits: np.ndarray, width: int) -> np.ndarray:
  return (bits.reshape(-1, width).astype(np.int64) << np.arange(width)).sum(1)


def _packed(bits: np.ndarray) -> bytes:
  return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def _unpacked(data: bytes, count: int) -> tuple[np.ndarray, bytes]:
  size = _bytes(count)
  raw = np.frombuffer(data[:size], np.uint8)
  return np.unpackbits(raw, count=count, bitorder="little"), data[size:]


def _read_positions(data: bytes, sizes) -> tuple[np.ndarray, bytes]:
  """(kept bool[P], the rest of the bytes)."""
  layers = [np.zeros(size, bool) for size in sizes]
  for part in layers if data else ():
    count, data = int(np.frombuffer(data, "<u4", 1)[0]), data[_HEAD:]
    width = _width(part.size)
    if part.size <= count * width:
      bits, data = _unpacked(data, part.size)
      part[:] = bits
    else:
      bits, data = _unpacked(data, count * width)
      part[_numbers(bits, width)] = True
  return np.concatenate(layers), data
