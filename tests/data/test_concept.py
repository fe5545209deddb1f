"""Concepts: label by label, and that no single model can serve two."""

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import concept, federated, partition, sources


def dealt(num_clients=4):
  x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
  y = np.arange(60) % 5
  data = sources.Dataset(x, y, x[:20] + 1, y[:20], 5, "", "", "")
  parts = partition.iid(y, num_clients)
  return federated.federate(data, parts), parts


def test_the_four_of_feddaa():
  tables = [one.table.tolist() for one in concept.feddaa(4)]
  assert tables == [[0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0], [2, 3, 0, 1]]


def test_each_client_renames_its_own_rows():
  data, parts = dealt()
  concepts = concept.by_group(4, concept.feddaa(5))
  shifted = concept.apply(data, concepts)
  old, new = np.asarray(data.examples.y), np.asarray(shifted.examples.y)
  for k, part in enumerate(parts):
    for row in part:
      assert new[row] == concepts[k].table[old[row]]
  assert new.dtype == np.int32
  np.testing.assert_array_equal(shifted.examples.x, data.examples.x)
  np.testing.assert_array_equal(shifted.heldout.y, data.heldout.y)


def test_held_out_examples_in_equal_shares_or_under_every_concept():
  data, _ = dealt()
  concepts = concept.parse("same/shift:1", 5, 4)
  y = np.asarray(data.heldout.y)
  share = concept.apply(data, concepts, heldout="share").heldout
  assert sorted((np.asarray(share.y) - y) % 5) == [0] * 10 + [1] * 10
  np.testing.assert_array_equal(share.x, data.heldout.x)
  every = concept.apply(data, concepts, heldout="every").heldout
  assert np.asarray(every.y).tolist() == [*y, *((y + 1) % 5)]
  np.testing.assert_array_equal(every.x, np.tile(data.heldout.x, (2, 1)))


def test_the_best_single_model_agrees_with_one_concept_in_four():
  """Bayes' rate by counting: the commonest label of each input."""
  data, _ = dealt()
  data = concept.apply(
    data, concept.by_group(4, concept.feddaa(5)), heldout="every"
  )
  labels = np.asarray(data.heldout.y).reshape(4, 20).T
  best = np.mean([np.bincount(line).max() / 4 for line in labels])
  # reverse meets another concept where 4 - y is y, y + 1 or y + 2 (mod 5)
  assert best == pytest.approx((2 * 0.25 + 3 * 0.5) / 5)


def test_strings_name_concepts():
  names = [c.name for c in concept.parse("feddaa", 10, 8)]
  assert names == ["same", "reverse", "shift:1", "shift:2"] * 2
  first, second = concept.parse("permutation:1/permutation:2", 10, 2)
  assert sorted(first.table) == sorted(second.table) == list(range(10))
  assert first.table.tolist() != second.table.tolist()
  merged = concept.label_map("merged", [0, 0, 1])
  assert merged.table.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda d: concept.parse("revrse", 5, 4), "did you mean 'reverse'"),
    (lambda d: concept.parse("shift", 5, 4), "shift:1"),
    (lambda d: concept.parse("same:2", 5, 4), "unknown concept 'same:2'"),
    (lambda d: concept.label_map("m", [0, 2]), "label 0 to K - 1"),
    (lambda d: concept.label_map("m", [0.0, 1.0]), "label 0 to K - 1"),
    (lambda d: concept.apply(d, [concept.same(5)]), "1 concepts for 4"),
    (lambda d: concept.apply(d, [concept.same(4)] * 4), "largest label is 4"),
    (
      lambda d: concept.apply(d, [concept.same(5)] * 3 + [concept.reverse(6)]),
      r"\[5, 6\] entries",
    ),
    (
      lambda d: concept.apply(d, [concept.same(5)] * 4, heldout="shares"),
      "did you mean 'share'",
    ),
  ],
)
def test_errors_say_what_to_do(call, message):
  with pytest.raises(UserError, match=message):
    call(dealt()[0])
