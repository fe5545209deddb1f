"""The stack as a monoid: what is in it does not depend on how it was filled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core import stack
from fedjax_het.core.errors import UserError
from fedjax_het.masks import votes

N = 7


def _messages():
  rng = np.random.default_rng(0)
  tree = {
    "a": rng.normal(size=(N, 2, 3)).astype(np.float32),
    "b": rng.integers(0, 99, size=(N, 5)).astype(np.int32),
  }
  weights = np.array([3, 1, 0, 2, 5, 0, 4], np.float32)
  tree["a"][weights == 0] = np.nan  # what is not there must not be read
  return tree, weights


def _fill(capacity, chunks, order=range(N)):
  """Adds chunks of the given sizes, each to a stack of its own, then merges."""
  tree, weights = _messages()
  reducer, order = stack.stack(capacity), np.asarray(order)
  zero = reducer.zero(jax.tree.map(lambda m: jnp.asarray(m[0]), tree))
  ends = np.cumsum(chunks)
  parts = [
    reducer.add(
      zero,
      jax.tree.map(lambda m, o=mine: jnp.asarray(m[o]), tree),
      jnp.asarray(weights[mine]),
    )
    for mine in np.split(order, ends)[:-1]
  ]
  acc = parts[0]
  for part in parts[1:]:
    acc = reducer.merge(acc, part)
  return reducer.finish(acc)


def _content(filled):
  """The taken places as a sorted list of rows."""
  here = np.asarray(filled.here)
  rows = [
    np.concatenate([[w], *(np.ravel(leaf) for leaf in leaves)])
    for w, *leaves in zip(
      filled.weights, *jax.tree.leaves(filled.messages), strict=True
    )
  ]
  return sorted(tuple(row) for row, h in zip(rows, here, strict=True) if h)


@pytest.mark.parametrize("order", [range(N), [6, 2, 0, 4, 5, 1, 3]])
@pytest.mark.parametrize("chunks", [(7,), (1,) * 7, (3, 4), (2, 1, 4)])
@pytest.mark.parametrize("capacity", [5, 9])
def test_it_holds_every_arrival_once(capacity, chunks, order):
  tree, weights = _messages()
  filled = _fill(capacity, chunks, order)
  assert int(filled.count) == 5
  np.testing.assert_array_equal(filled.here, np.arange(capacity) < 5)
  want = sorted(
    tuple(np.concatenate([[weights[k]], tree["a"][k].ravel(), tree["b"][k]]))
    for k in np.flatnonzero(weights)
  )
  assert _content(filled) == want


def test_merging_is_associative():
  reducer = stack.stack(4)
  tree, weights = _messages()
  zero = reducer.zero(jax.tree.map(lambda m: jnp.asarray(m[0]), tree))
  a, b, c = (
    reducer.add(
      zero,
      jax.tree.map(lambda m, s=s: jnp.asarray(m[s]), tree),
      jnp.asarray(weights[s]),
    )
    for s in (slice(0, 2), slice(2, 5), slice(5, 7))
  )  # 2 + 2 + 1 arrivals: the last one is lost
  left = reducer.merge(reducer.merge(a, b), c)
  right = reducer.merge(a, reducer.merge(b, c))
  jax.tree.map(np.testing.assert_array_equal, left, right)
  assert int(left.count) == 5


def test_nobody_is_nothing():
  reducer = stack.stack(3)
  zero = reducer.zero({"a": jnp.zeros(2)})
  acc = reducer.add(zero, {"a": jnp.full((2, 2), jnp.nan)}, jnp.zeros(2))
  jax.tree.map(np.testing.assert_array_equal, acc, zero)


def test_packed_signs_can_be_stacked():
  reducer = stack.stack(3)
  signs = np.random.default_rng(1).choice([-1.0, 1.0], size=(2, 40))
  rows = [votes.pack(jnp.asarray(row, jnp.float32)) for row in signs]
  acc = reducer.zero(rows[0])
  for row in rows:
    acc = reducer.add(acc, jax.tree.map(lambda w: w[None], row), jnp.ones(1))
  for k in range(2):
    one = jax.tree.map(lambda leaf, k=k: leaf[k], acc.messages)
    np.testing.assert_array_equal(one.unpack(), signs[k])


def test_no_capacity_is_refused():
  with pytest.raises(UserError, match="size of the cohort"):
    stack.stack(0)
