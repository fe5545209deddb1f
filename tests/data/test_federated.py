"""FederatedData from a partition: checked row by row in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import NO_BUDGET
from fedjax_het.data import federated, partition, sources


def toy(n=40, num_classes=3):
  rng = np.random.default_rng(0)
  y = (np.arange(n) % num_classes).astype(np.int32)
  x = rng.normal(size=(n, 2, 1)).astype(np.float32)
  return sources.Dataset(x, y, x[:5] + 1, y[:5], num_classes, "toy", "", "")


def rows_of(rows):
  """Rows as lists, checking the padding on the way."""
  index, count = np.asarray(rows.index), np.asarray(rows.count)
  assert index.dtype == count.dtype == np.int32
  assert index.shape[1] == count.max() and count.min() >= 1
  for line, c in zip(index, count, strict=True):
    assert (line[c:] == 0).all()
  return [line[:c].tolist() for line, c in zip(index, count, strict=True)]


def ragged(draw, n):
  """A random partition of a part of n rows into clients of 2 rows or more."""
  rows = draw(st.permutations(range(n)))
  sizes = draw(st.lists(st.integers(2, 9), min_size=1, max_size=6))
  parts, start = [], 0
  for size in sizes:
    if start + size > n:
      break
    parts.append(np.array(rows[start : start + size]))
    start += size
  return parts


@settings(max_examples=60, deadline=None)
@given(
  parts=st.composite(ragged)(n=40),
  fraction=st.sampled_from([0.01, 0.2, 0.5, 0.99]),
  seed=st.integers(0, 3),
)
def test_train_and_test_rows_are_the_clients_rows(parts, fraction, seed):
  data = federated.federate(toy(), parts, test_fraction=fraction, seed=seed)
  assert data.num_clients == len(parts)
  for part, train, test in zip(
    parts, rows_of(data.train), rows_of(data.test), strict=True
  ):
    assert sorted(train + test) == sorted(part.tolist())
    wanted = min(max(round(fraction * len(part)), 1), len(part) - 1)
    assert len(test) == wanted


def test_examples_are_those_of_the_data_set_on_the_device():
  dataset = toy()
  data = federated.federate(dataset, [np.arange(20), np.arange(20, 40)])
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(data))
  np.testing.assert_array_equal(data.examples.x, dataset.train_x)
  np.testing.assert_array_equal(data.examples.y, dataset.train_y)
  np.testing.assert_array_equal(data.heldout.x, dataset.test_x)
  np.testing.assert_array_equal(data.heldout.y, dataset.test_y)
  assert data.examples.x.dtype == jnp.float32
  assert data.examples.y.dtype == data.budget.dtype == jnp.int32
  assert (data.budget == NO_BUDGET).all()


def test_the_seed_decides_the_split():
  parts = partition.iid(np.zeros(40, int), 4)
  first, again, other = (
    federated.federate(toy(), parts, seed=seed) for seed in (1, 1, 2)
  )
  assert rows_of(first.test) == rows_of(again.test)
  assert rows_of(first.test) != rows_of(other.test)


def test_the_split_is_random_inside_a_client():
  # Each of 10 rows must be tested on about 2 of 10 times.
  tested = np.zeros(10)
  for seed in range(100):
    data = federated.federate(toy(), [np.arange(10)], seed=seed)
    tested[rows_of(data.test)[0]] += 1
  assert np.abs(tested - 20).max() < 5 * np.sqrt(100 * 0.2 * 0.8)


def test_budget_is_one_number_or_one_a_client():
  parts = [[0, 1], [2, 3], [4, 5]]
  same = federated.federate(toy(), parts, budget=7)
  each = federated.federate(toy(), parts, budget=[3, 0, 5])
  assert same.budget.tolist() == [7, 7, 7] and each.budget.tolist() == [3, 0, 5]


def test_clients_may_share_rows():
  data = federated.federate(toy(), [[0, 1, 2], [1, 2, 3]])
  assert data.num_clients == 2


@pytest.mark.parametrize(
  "parts, options, message",
  [
    ([], {}, "has no clients"),
    ([[0, 1], []], {}, "client 1 holds 0 examples"),
    ([[0, 1], [2]], {}, "client 1 holds 1 examples"),
    ([[0, 1], [2, 2]], {}, "client 1 holds row 2 twice"),
    (
      [[0, 1], [3, 40]],
      {},
      "client 1 holds row 40, the data have rows 0 to 39",
    ),
    ([[0, -1]], {}, "client 0 holds row -1"),
    ([[0.0, 1.0]], {}, "client 0: rows must be a list of integers"),
    ([[[0, 1]]], {}, "client 0: rows must be a list of integers"),
    ([[0, 1]], {"test_fraction": 0.0}, "test_fraction must be between"),
    ([[0, 1]], {"test_fraction": 1.0}, "test_fraction must be between"),
    ([[0, 1]], {"budget": -1}, "budget must be"),
    ([[0, 1]], {"budget": [1, 2]}, "budget must be"),
    ([[0, 1]], {"budget": 1.5}, "budget must be"),
    ([[0, 1]], {"budget": 2**31}, "budget must be"),
  ],
)
def test_what_federate_refuses(parts, options, message):
  with pytest.raises(UserError, match=message):
    federated.federate(toy(), parts, **options)


def test_label_counts_against_a_loop():
  dataset = toy(40, 3)
  parts = partition.parse("dirichlet:0.5,min_size=2", dataset.train_y, 5)
  data = federated.federate(dataset, parts)
  for split, rows in (
    ("both", [part.tolist() for part in parts]),
    ("train", rows_of(data.train)),
    ("test", rows_of(data.test)),
  ):
    expected = [
      [sum(int(dataset.train_y[i]) == k for i in part) for k in range(3)]
      for part in rows
    ]
    assert federated.label_counts(data, split).tolist() == expected
  with pytest.raises(UserError, match="did you mean 'train'"):
    federated.label_counts(data, "trian")


def test_label_counts_has_a_column_for_classes_that_only_the_heldout_has():
  dataset = toy(9, 3)._replace(test_y=np.array([5, 0, 0, 0, 0], np.int32))
  data = federated.federate(dataset, [[0, 1, 2], [3, 4, 5]])
  assert federated.label_counts(data).shape == (2, 6)


# --- from_arrays ---


def test_from_arrays_follows_the_ids_and_holds_out_rows_of_each():
  rng = np.random.default_rng(0)
  ids = rng.permutation(np.repeat(["ann", "bob", "cy"], [20, 35, 9]))
  x = np.arange(64)[:, None]  # the value tells the row
  y = np.arange(64) % 4
  data = federated.from_arrays(x, y, ids, seed=1)
  held = np.asarray(data.heldout.x)[:, 0].astype(int)
  assert np.unique(ids[held], return_counts=True)[1].tolist() == [2, 3]
  assert (np.asarray(data.heldout.y) == held % 4).all()
  for name, train, test in zip(
    ["ann", "bob", "cy"], rows_of(data.train), rows_of(data.test), strict=True
  ):
    mine = set(np.flatnonzero(ids == name).tolist()) - set(held.tolist())
    assert sorted(train + test) == sorted(mine)


def test_from_arrays_with_given_heldout_keeps_every_row():
  x, y = np.zeros((6, 2, 2)), np.arange(6) % 2
  heldout = (np.ones((3, 2, 2)), np.array([0, 1, 7]))
  data = federated.from_arrays(x, y, [5, 5, 5, 9, 9, 9], heldout=heldout)
  counts = np.asarray(data.train.count) + np.asarray(data.test.count)
  assert counts.tolist() == [3, 3]
  assert data.heldout.x.shape == (3, 2, 2)


GOOD = dict(
  x=np.zeros((6, 2)), y=np.arange(6) % 2, client_ids=[0, 0, 0, 1, 1, 1]
)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"y": np.zeros(5, int)}, "x must be .* and y"),
    ({"x": np.zeros(6)}, "x must be .* and y"),
    ({"y": np.zeros(6)}, "y must be labels"),
    ({"y": np.array([0, 1, -1, 0, 0, 0])}, "y must be labels"),
    ({"x": np.full((6, 2), np.nan)}, "NaN or Inf"),
    ({"x": np.full((6, 2), "a")}, "finite numbers"),
    ({"client_ids": [0, 1]}, "one id for each of the 6"),
    ({}, "no example at all"),
    ({"heldout_fraction": 0.0}, "heldout_fraction must be"),
    ({"heldout": (np.zeros((2, 3)), np.zeros(2, int))}, r"shape \[3\]"),
    ({"heldout": (np.zeros((0, 2)), np.zeros(0, int))}, "heldout x must be"),
    ({"heldout_fraction": 0.7}, "client 0 holds 1 examples"),
  ],
)
def test_what_from_arrays_refuses(change, message):
  with pytest.raises(UserError, match=message):
    federated.from_arrays(**{**GOOD, **change})


def test_rows_that_are_split_already():
  train, test = [[3, 1], [7]], [[0], [5, 4, 8]]
  data = federated.from_rows(toy(), train, test, budget=[1, 2])
  assert rows_of(data.train) == train and rows_of(data.test) == test
  assert data.budget.tolist() == [1, 2]
  np.testing.assert_array_equal(data.examples.x, toy().train_x)


@pytest.mark.parametrize(
  "train, test, message",
  [
    ([[0]], [[1], [2]], "train rows of 1 clients and test rows of 2"),
    ([[0], [1]], [[2], []], "client 1 holds 0 examples"),
    ([[0], [1, 2]], [[3], [2]], "client 1 holds row 2 twice"),
    ([[0]], [[40]], "client 0 holds row 40"),
  ],
)
def test_bad_splits_are_named(train, test, message):
  with pytest.raises(UserError, match=message):
    federated.from_rows(toy(), train, test)


def test_tokens_stay_whole_numbers():
  x = np.arange(120).reshape(30, 4)
  y, ids = np.arange(30) % 2, np.repeat([0, 1], 15)
  data = federated.from_arrays(x, y, ids, tokens=True)
  assert data.examples.x.dtype == data.heldout.x.dtype == jnp.int32
  both = np.concatenate([data.examples.x, data.heldout.x])
  # the examples that are held out stay in the store, in nobody's rows
  assert {tuple(row) for row in both.tolist()} == {tuple(r) for r in x.tolist()}
  assert federated.from_arrays(x, y, ids).examples.x.dtype == jnp.float32
  with pytest.raises(UserError, match="token ids 0, 1, 2, ..., got float64"):
    federated.from_arrays(x / 2, y, ids, tokens=True)
  with pytest.raises(UserError, match="token ids"):
    federated.from_arrays(x - 1, y, ids, tokens=True)
