"""Bytes of sparse messages: counted, written, read, and counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core import wire
from fedjax_het.masks.sparse_wire import (
  MaskNews,
  SparseValues,
  mask_nbytes,
  sparse_values,
)

SIZES = (40, 1, 300)
WIDTHS = (6, 1, 9)  # bits of a position


def flags(seed, counts):
  """bool[P] with so many True in each layer."""
  rng = np.random.default_rng(seed)
  parts = []
  for size, count in zip(SIZES, counts, strict=True):
    part = np.zeros(size, bool)
    part[rng.choice(size, count, replace=False)] = True
    parts.append(part)
  return np.concatenate(parts)


def sparse(counts, new, seed=0):
  kept = flags(seed, counts)
  values = np.random.default_rng(9).normal(size=kept.size) * kept
  return SparseValues(
    jnp.asarray(values, jnp.float32), jnp.asarray(kept), jnp.bool_(new), SIZES
  )


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(
  "counts", [(0, 0, 0), (1, 0, 3), (39, 1, 20), (40, 1, 300), (7, 0, 34)]
)
def test_values_are_counted_as_written_and_read_back(counts, new):
  message = sparse(counts, new)
  where = sum(
    4 + -(-min(size, count * width) // 8)
    for size, count, width in zip(SIZES, counts, WIDTHS, strict=True)
  )
  expected = 4 * sum(counts) + (where if new and any(counts) else 0)
  data = wire.encode(message)
  assert len(data) == int(wire.nbytes(message)) == expected
  back = wire.decode(data, message)
  np.testing.assert_array_equal(back.values, message.values)
  np.testing.assert_array_equal(back.kept, message.kept)


def test_new_positions_are_read_from_the_bytes_alone():
  message, other = sparse((7, 1, 34), True), sparse((40, 0, 2), True, seed=5)
  back = other.from_bytes(message.to_bytes())
  np.testing.assert_array_equal(back.values, message.values)
  np.testing.assert_array_equal(back.kept, message.kept)
  # known positions are the receiver's
  known = sparse((7, 1, 34), False)
  blank = known.from_bytes(known.to_bytes())
  np.testing.assert_array_equal(blank.values, known.values)


@pytest.mark.parametrize(
  "kept, stale, bits",
  [
    ((20, 1, 3), (0, 0, 0), None),
    ((20, 1, 3), (2, 0, 0), (14, 0, 0)),  # a patch: 2 x (6 + 1)
    ((20, 1, 3), (40, 1, 300), (40, 1, 27)),  # bitmap; either; list 3 x 9
    ((0, 0, 40), (0, 1, 30), (0, 0, 300)),  # nothing kept: an empty list
  ],
)
def test_mask_news_bring_an_old_mask_up_to_date(kept, stale, bits):
  now, gone = flags(0, kept), flags(1, stale)
  news = MaskNews(jnp.asarray(now), jnp.asarray(gone), SIZES)
  data = wire.encode(news)
  expected = 0 if bits is None else sum(4 + -(-b // 8) for b in bits)
  assert len(data) == int(wire.nbytes(news)) == expected
  old = now ^ (gone & (np.arange(now.size) % 2 == 0))  # some stale ones differ
  receiver = MaskNews(jnp.asarray(old), jnp.asarray(gone), SIZES)
  np.testing.assert_array_equal(receiver.from_bytes(data).kept, now)


def test_values_of_a_tree():
  tree = {"a": jnp.arange(6.0).reshape(2, 3) + 1, "b": jnp.ones(4)}
  mask = {
    "a": jnp.asarray([[True, False, False], [False, False, True]]),
    "b": jnp.ones(4, bool),
  }
  message = sparse_values(tree, mask, new=False)
  assert int(wire.nbytes(message)) == 8
  np.testing.assert_array_equal(message.values, [1, 0, 0, 0, 0, 6])
  assert mask_nbytes(mask) == 4 + 1  # 6 positions as a bitmap


def test_sizes_are_counted_inside_vmap():
  messages = [sparse((7, 1, 34), True), sparse((1, 0, 0), True)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *messages)
  counted = jax.vmap(lambda m: m.wire_nbytes())(stacked)
  np.testing.assert_array_equal(
    counted, [len(wire.encode(message)) for message in messages]
  )
