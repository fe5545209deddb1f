"""Partitioners: properties that all share, each rule against a slow loop."""

import collections
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.core.errors import UserError
from fedjax_het.data import partition

# Uneven classes with labels that are not 0..K-1, in random order.
CLASS_SIZES = {3: 400, 7: 350, 8: 150, 20: 100}
LABELS = np.random.default_rng(0).permutation(
  np.repeat(list(CLASS_SIZES), list(CLASS_SIZES.values()))
)
USES_ALL = [
  "iid",
  "dirichlet:0.5,min_size=1",
  "dirichlet:0.1,min_size=1,balanced=true",
  "affected_dirichlet:0.5,affected=7,min_size=1",
  "inner_dirichlet:0.2",
  "dual_dirichlet:2,min_size=1",
  "class_shares:low=2,high=3",
  "pathological:2,class_assignment_mode=deterministic",
  "pathological:2,class_assignment_mode=first-deterministic",
  "shard:2",
  "shard:shard_size=33,keep_incomplete_shard=true",
  "linear",
  "square",
  "exponential:1.5",
]
LEAVES_SOME = ["size:30", "inner_dirichlet:0.2,size=30", "shard:shard_size=33"]


def assert_partition(parts, num_clients, num_rows):
  assert len(parts) == num_clients
  assert all(part.dtype == np.int64 and part.size for part in parts)
  rows = np.concatenate(parts)
  assert rows.min() >= 0 and rows.max() < num_rows
  assert len(set(rows.tolist())) == rows.size
  return rows.size


@pytest.mark.parametrize("spec", USES_ALL)
def test_each_row_goes_to_exactly_one_client(spec):
  parts = partition.parse(spec, LABELS, 10, seed=3)
  assert assert_partition(parts, 10, 1000) == 1000


@pytest.mark.parametrize("spec", LEAVES_SOME)
def test_rows_left_out_leave_the_rest_disjoint(spec):
  assert assert_partition(partition.parse(spec, LABELS, 10), 10, 1000) < 1000


@pytest.mark.parametrize("spec", USES_ALL + LEAVES_SOME)
def test_the_seed_alone_decides(spec):
  first, again, other = (
    partition.parse(spec, LABELS, 10, seed=seed) for seed in (1, 1, 2)
  )
  assert all(map(np.array_equal, first, again))
  assert not all(map(np.array_equal, first, other))


@pytest.mark.parametrize("spec", USES_ALL)
def test_rows_of_a_client_come_in_random_order(spec):
  # Of 1000 rows stored by class: taking the first ones must not take one class.
  stored = np.sort(LABELS)
  for part in partition.parse(spec, stored, 3):
    labels = stored[part]
    if np.unique(labels).size > 1 and labels.size > 50:
      assert np.unique(labels[:50]).size > 1


@settings(max_examples=150, deadline=None)
@given(
  class_sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
  num_clients=st.integers(1, 40),
  spec=st.sampled_from(
    [
      *USES_ALL,
      *LEAVES_SOME,
      "dirichlet:1e-4,min_size=1",
      "inner_dirichlet:1e-6",
      "inner_dirichlet:50,size=2",
      "pathological:1",
      "pathological:3",
      "shard:1",
      "shard:3,shard_size=2",
    ]
  ),
  seed=st.integers(0, 5),
)
def test_any_sizes_give_a_partition_or_a_user_error(
  class_sizes, num_clients, spec, seed
):
  labels = np.repeat(5 * np.arange(len(class_sizes)) + 2, class_sizes)
  try:
    parts = partition.parse(spec, labels, num_clients, seed)
  except UserError as error:
    assert "\n" not in str(error)
  else:
    assert_partition(parts, num_clients, labels.size)


# --- each rule ---


def test_iid_sizes_differ_by_one_at_most_and_labels_follow_the_whole():
  parts = partition.iid(LABELS, 7)
  assert sorted(map(len, parts)) == [142, 143, 143, 143, 143, 143, 143]
  share = [np.mean(LABELS[part] == 3) for part in parts]
  # hypergeometric: standard deviation .04 around 0.4
  assert np.abs(np.array(share) - 0.4).max() < 0.16


def test_dirichlet_shares_have_the_moments_of_the_law():
  # For q ~ Dir(a, ..., a) over N clients: E q = 1/N and
  # Var q = (1/N)(1 - 1/N) / (N a + 1), per class.
  n, alpha, runs = 5, 0.7, 400
  labels = np.repeat([0, 1], 2000)
  share = np.array(
    [
      [
        np.count_nonzero(part < 2000) / 2000
        for part in partition.dirichlet(
          labels, n, alpha=alpha, seed=seed, min_size=1
        )
      ]
      for seed in range(runs)
    ]
  )
  variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
  assert np.abs(share.mean(axis=0) - 1 / n).max() < 5 * math.sqrt(
    variance / runs
  )
  assert share.var() == pytest.approx(variance, rel=0.1)


def test_dirichlet_deals_the_two_classes_independently():
  labels = np.repeat([0, 1], 2000)
  pairs = []
  for seed in range(300):
    part = partition.dirichlet(labels, 4, alpha=2.0, seed=seed, min_size=1)[0]
    pairs.append([np.sum(part < 2000), np.sum(part >= 2000)])
  correlation = np.corrcoef(np.array(pairs).T)[0, 1]
  assert abs(correlation) < 5 / math.sqrt(300)


def test_dirichlet_redraws_until_the_smallest_client_is_large_enough():
  sizes = [
    min(map(len, partition.dirichlet(LABELS, 10, alpha=0.5, seed=s)))
    for s in range(30)
  ]
  assert min(sizes) >= 10  # the default
  loose = [
    min(
      map(len, partition.dirichlet(LABELS, 10, alpha=0.5, seed=s, min_size=1))
    )
    for s in range(30)
  ]
  assert min(loose) < 10  # so that the line above tests something


def test_dirichlet_says_what_to_change_when_no_draw_will_do():
  with pytest.raises(UserError, match=r"alpha > 0\.01.*inner_dirichlet"):
    partition.dirichlet(LABELS, 50, alpha=0.01, min_size=10)


def test_balanced_dirichlet_gives_no_further_class_above_the_average():
  def naive_check(part):
    # Classes are dealt in label order: before its last class a client held no
    # more than the average.
    counts = collections.Counter(LABELS[part].tolist())
    held = [counts[k] for k in sorted(counts)]
    return sum(held[:-1]) <= len(LABELS) / 10

  for seed in range(20):
    balanced = partition.dirichlet(
      LABELS, 10, alpha=0.3, seed=seed, min_size=1, balanced=True
    )
    assert all(map(naive_check, balanced))
  plain = partition.dirichlet(LABELS, 10, alpha=0.3, min_size=1)
  assert not all(map(naive_check, plain))


def naive_inner_dirichlet(class_sizes, sizes, alpha, rng):
  """Counts i[N, K], place after place, drawing again when a class is empty."""
  prior = rng.dirichlet([alpha] * len(class_sizes), size=len(sizes))
  left = list(class_sizes)
  counts = np.zeros((len(sizes), len(class_sizes)), int)
  for client in rng.permutation(np.repeat(np.arange(len(sizes)), sizes)):
    p = prior[client] * (np.array(left) > 0)
    p = p if p.sum() > 0 else (np.array(left) > 0).astype(float)
    k = rng.choice(len(left), p=p / p.sum())
    left[k] -= 1
    counts[client, k] += 1
  return counts


@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("sizes", [[2, 3, 1], [2, 2, 8]])
def test_inner_dirichlet_has_the_law_of_the_sequential_rule(alpha, sizes):
  # Tight: with [2, 2, 8] all 12 examples are dealt, so classes run out.
  class_sizes = [2, 4, 6]
  labels = np.repeat([0, 1, 2], class_sizes)
  runs = 600
  rng = np.random.default_rng(5)
  ours, naive = [], []
  for seed in range(runs):
    parts = partition.inner_dirichlet(labels, sizes, alpha=alpha, seed=seed)
    ours.append([np.bincount(labels[part], minlength=3) for part in parts])
    naive.append(naive_inner_dirichlet(class_sizes, sizes, alpha, rng))
  ours, naive = np.array(ours, float), np.array(naive, float)
  # first and second moments of all 9 counts, 5 standard errors
  for power in (1, 2):
    a, b = ours**power, naive**power
    error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / runs) + 1e-9
    assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) / error).max() < 5


def test_inner_dirichlet_holds_the_sizes_and_alpha_sets_the_skew():
  sizes = [40, 1, 30, 20]  # together less than the rarest class
  few, many = (
    partition.inner_dirichlet(LABELS, sizes, alpha=alpha)
    for alpha in (1e-3, 1e3)
  )
  assert [len(p) for p in few] == [len(p) for p in many] == sizes
  # alpha large: each client as the uniform mixture over classes
  share = np.bincount(LABELS[many[2]], minlength=21)[[3, 7, 8, 20]] / 30
  np.testing.assert_allclose(share, 0.25, atol=0.25)
  assert all(np.unique(LABELS[part]).size == 1 for part in few)


@pytest.mark.parametrize("mode", ["random", "first-deterministic"])
def test_pathological_gives_each_client_so_many_classes_dealt_evenly(mode):
  labels = np.repeat(np.arange(5), 200)
  parts = partition.pathological(
    labels, 20, num_classes_per_client=3, class_assignment_mode=mode, seed=1
  )
  counts = np.array([np.bincount(labels[part], minlength=5) for part in parts])
  assert (np.count_nonzero(counts, axis=1) == 3).all()
  for column in counts.T:
    held = column[column > 0]
    assert held.max() - held.min() <= 1 and held.sum() == 200
  if mode == "first-deterministic":
    assert all(counts[i, i % 5] for i in range(20))
  assert len({tuple(row > 0) for row in counts}) > 5  # the rest is random


def test_pathological_deterministic_takes_the_next_classes():
  parts = partition.pathological(
    LABELS,
    8,
    num_classes_per_client=2,
    class_assignment_mode="deterministic",
  )
  names = list(CLASS_SIZES)
  for i, part in enumerate(parts):
    expected = {names[i % 4], names[(i + 1) % 4]}
    assert set(LABELS[part].tolist()) == expected


def test_pathological_leaves_out_classes_that_nobody_drew():
  parts = partition.pathological(LABELS, 2, num_classes_per_client=1, seed=0)
  drawn = {int(LABELS[part][0]) for part in parts}
  assert sum(map(len, parts)) == sum(CLASS_SIZES[k] for k in drawn) < 1000


def test_pathological_names_the_label_that_is_too_rare():
  labels = np.repeat([4, 9], [2, 100])
  with pytest.raises(UserError, match="label 4 has 2 examples but 10 clients"):
    partition.pathological(labels, 10, num_classes_per_client=2)


def test_shard_is_the_split_of_the_fedavg_paper():
  # 10 classes x 600, 100 clients x 2 shards of 30: each shard in one class.
  labels = np.arange(6000) % 10
  parts = partition.shard(labels, 100, num_shards_per_client=2)
  for part in parts:
    counts = np.bincount(labels[part])
    assert len(part) == 60
    assert set(counts[counts > 0].tolist()) <= {30, 60}
  assert sum(np.unique(labels[part]).size == 2 for part in parts) > 70


def test_shards_are_runs_of_the_rows_sorted_by_label():
  labels = np.repeat([0, 1, 2], [50, 25, 28])
  parts = partition.shard(
    labels, 5, shard_size=10, keep_incomplete_shard=True, seed=2
  )
  # 11 shards: the first client gets three, and the last shard has 3 rows
  assert sorted(map(len, parts)) in ([13, 20, 20, 20, 30], [20] * 4 + [23])
  counts = np.array([np.bincount(labels[p], minlength=3) for p in parts])
  # shard 7 (rows 70..79) holds 5 of class 1 and 5 of class 2, all others but
  # the last hold 10 of one class
  assert (counts[:, 0] % 10 == 0).all()
  assert sorted(counts[:, 1] % 10) == [0, 0, 0, 0, 5]


@pytest.mark.parametrize(
  "options, rule",
  [
    ({"num_shards_per_client": 3}, "111 rows, 9 shards of 12"),
    ({"num_shards_per_client": 3, "shard_size": 5}, "9 shards of 5"),
    ({"shard_size": 20}, "5 shards of 20"),
  ],
)
def test_shard_sizes(options, rule):
  sizes = sorted(
    map(len, partition.shard(np.zeros(111, int), 3, **options)), reverse=True
  )
  expected = {
    "111 rows, 9 shards of 12": [36, 36, 36],
    "9 shards of 5": [15, 15, 15],
    "5 shards of 20": [40, 40, 20],
  }
  assert sizes == expected[rule]


@pytest.mark.parametrize(
  "build, weight",
  [
    (partition.linear, lambda i: i),
    (partition.square, lambda i: i * i),
    (partition.exponential, lambda i: math.e**i),
  ],
)
def test_sizes_follow_the_weights_and_the_last_takes_the_remainder(
  build, weight
):
  n, clients = 100_003, 9
  total = sum(weight(i) for i in range(1, clients + 1))
  expected = [int(n * weight(i) / total) for i in range(1, clients + 1)]
  expected[-1] += n - sum(expected)
  sizes = [len(part) for part in build(np.zeros(n, int), clients)]
  assert sizes == expected


def test_clients_below_min_size_are_raised_and_the_rest_stays_proportional():
  sizes = np.array(
    [len(p) for p in partition.linear(np.zeros(60_000, int), 1000, min_size=5)]
  )
  assert sizes.sum() == 60_000 and sizes.min() == 5
  assert (np.diff(sizes) >= 0).all()
  slope = sizes[100:-1] / np.arange(101, 1000)
  np.testing.assert_allclose(slope, slope[-1], atol=1 / 100)


def test_natural_ids_keep_the_order_of_the_rows():
  ids = np.array(["b", "a", "b", "c", "a", "b"])
  parts = partition.natural_id(ids)
  assert [part.tolist() for part in parts] == [[1, 4], [0, 2, 5], [3]]


@pytest.mark.parametrize(
  "mode, groups",
  [
    ("allow-smaller", [{0, 1, 2}, {3, 4, 5}, {6, 7}]),
    ("allow-bigger", [{0, 1, 2, 3}, {4, 5, 6, 7}]),
    ("drop-reminder", [{0, 1, 2}, {3, 4, 5}]),
  ],
)
def test_grouped_natural_ids(mode, groups):
  ids = np.random.default_rng(0).permutation(np.arange(40) % 8)
  parts = partition.grouped_natural_id(ids, 3, mode)
  assert [set(ids[part].tolist()) for part in parts] == groups
  assert [len(part) for part in parts] == [5 * len(group) for group in groups]


def test_strict_grouping_refuses_left_over_ids():
  ids = [0, 1, 2, 3]
  assert len(partition.grouped_natural_id(ids, 2, "strict")) == 2
  with pytest.raises(UserError, match="4 ids don't divide into groups of 3"):
    partition.grouped_natural_id(ids, 3, "strict")


# --- bad input ---


@pytest.mark.parametrize(
  "spec, clients, message",
  [
    ("dirichlett:0.1", 3, "did you mean 'dirichlet'"),
    ("dirichlet", 3, "needs a value for alpha"),
    ("dirichlet:x", 3, "alpha must be a number, got 'x'"),
    ("dirichlet:0", 3, "alpha must be a positive number"),
    ("dirichlet:-1", 3, "alpha must be a positive number"),
    ("dirichlet:nan", 3, "alpha must be a positive number"),
    ("inner_dirichlet:inf", 3, "alpha must be a positive number"),
    ("dirichlet:1,alfa=2", 3, "did you mean 'alpha'"),
    ("dirichlet:1,min_size=0", 3, "min_size must be at least 1"),
    ("dirichlet:1,min_size=400", 3, "1200 examples, the data have 1000"),
    ("dirichlet:1,balanced=yes", 3, "balanced must be true or false"),
    ("dirichlet:1,2", 3, "'2' has no place"),
    ("iid:5", 3, "'5' has no place"),
    ("iid", 1001, "1001 examples, the data have 1000"),
    ("iid", 0, "num_clients must be at least 1"),
    ("linear", 501, "1002 examples, the data have 1000"),
    ("linear", 0, "num_clients must be at least 1"),
    ("exponential:1", 3, "growth must be a number above 1"),
    ("pathological:5", 3, "between 1 and 4"),
    ("pathological:2.5", 3, "must be a whole number"),
    ("pathological:2,class_assignment_mode=rand", 3, "did you mean 'random'"),
    ("shard", 3, "needs num_shards_per_client, shard_size, or both"),
    ("shard:0", 3, "num_shards_per_client must be at least 1"),
    ("shard:2000", 3, "3 clients x 2000 shards are more than the 1000"),
    ("shard:shard_size=400", 3, "make 2 shards of 400, 3 are needed"),
    ("shard:2,shard_size=400", 3, "make 2 shards of 400, 6 are needed"),
    ("size:334", 3, "add up to 1002, the data have 1000"),
    ("size:0", 3, "client 0 would hold 0 examples"),
    ("natural_id", 3, "needs the id of each example"),
    ("", 3, "unknown partition ''"),
  ],
)
def test_bad_specs_are_user_errors_of_one_line(spec, clients, message):
  with pytest.raises(UserError, match=message) as caught:
    partition.parse(spec, LABELS, clients)
  assert "\n" not in str(caught.value)


def test_the_empty_client_is_named():
  # one row of the only class for three clients that all need it
  with pytest.raises(UserError, match="client"):
    partition.pathological([0, 0, 1, 1, 1, 1], 5, num_classes_per_client=1)


@pytest.mark.parametrize("labels", [[0.5, 1.0], [[0, 1]], ["a", "b"], []])
def test_labels_must_be_integers(labels):
  with pytest.raises(UserError):
    partition.iid(labels, 1)


@pytest.mark.parametrize("sizes", [[], [1.5], [3, 0], [3, -1], [[1]]])
def test_sizes_must_be_positive_integers(sizes):
  with pytest.raises(UserError):
    partition.size(LABELS, sizes)


@pytest.mark.parametrize(
  "ids, size, mode, message",
  [
    ([], 1, "strict", "non-empty"),
    ([0, 1], 0, "strict", "at least 1"),
    ([0, 1], 3, "allow-bigger", "more than the 2 ids"),
    ([0, 1], 1, "alow-bigger", "did you mean 'allow-bigger'"),
  ],
)
def test_bad_groups(ids, size, mode, message):
  with pytest.raises(UserError, match=message):
    partition.grouped_natural_id(ids, size, mode)


def test_parse_passes_every_option_on():
  ours = partition.parse("dirichlet:0.3,min_size=4,balanced=True", LABELS, 5, 9)
  direct = partition.dirichlet(
    LABELS, 5, alpha=0.3, min_size=4, balanced=True, seed=9
  )
  assert all(map(np.array_equal, ours, direct))
