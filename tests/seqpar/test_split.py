"""Splitting and laying out against exhaustive enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.seqpar import cost, layouts, presets, split

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def runs(items, count):
  """All ways to cut a list into `count` non-empty runs."""
  for cuts in itertools.combinations(range(1, len(items)), count - 1):
    ends = [0, *cuts, len(items)]
    yield [items[a:b] for a, b in itertools.pairwise(ends)]


@given(LENGTHS, st.integers(1, 8))
@settings(deadline=None)
def test_blaster_minimises_the_fullest_run(lengths, steps):
  steps = min(steps, len(lengths))
  falling = sorted(lengths, reverse=True)
  fullest = min(max(map(sum, cut)) for cut in runs(falling, steps))
  parts = split.blaster(np.array(lengths), steps)
  assert len(parts) == steps and all(len(part) for part in parts)
  assert sorted(np.concatenate(parts)) == list(range(len(lengths)))
  assert max(sum(lengths[k] for k in part) for part in parts) == fullest
  assert [lengths[k] for part in parts for k in part] == falling


@given(LENGTHS, st.integers(1, 8))
@settings(deadline=None)
def test_buckets_waste_least(lengths, count):
  count = min(count, len(lengths))
  rising = sorted(lengths)

  def waste(buckets):
    return sum(max(b) * len(b) - sum(b) for b in buckets)

  least = min(waste(cut) for cut in runs(rising, count))
  found = split.buckets(np.array(lengths), count)
  assert len(found) <= count
  assert waste([[lengths[k] for k in part] for part in found]) == least
  assert sorted(np.concatenate(found)) == list(range(len(lengths)))


@given(LENGTHS)
@settings(deadline=None)
def test_fewest_steps_is_the_first_that_fits(lengths):
  capacity = max(lengths) + 10
  falling = sorted(lengths, reverse=True)
  fits = [
    n
    for n in range(1, len(lengths) + 1)
    if any(max(map(sum, cut)) <= capacity for cut in runs(falling, n))
  ]
  assert split.fewest_steps(np.array(lengths), capacity) == fits[0]


def test_blaster_refuses_empty_micro_batches():
  with pytest.raises(ValueError, match="3 sequences into 4"):
    split.blaster(np.ones(3, int), 4)


def every_shape(devices, degrees):
  ranges = [range(devices // d + 1) for d in degrees]
  return {
    counts
    for counts in itertools.product(*ranges)
    if np.dot(counts, degrees) == devices
  }


@pytest.mark.parametrize(
  "devices, degrees, number",
  [(8, [1, 2, 4, 8], 10), (16, [2, 4, 8], 9), (64, [2, 4, 8, 16, 32, 64], 202)],
)
def test_every_shape_is_listed_once(devices, degrees, number):
  found = layouts.few_shapes(devices, degrees, 10_000)
  assert len(found) == number == len(set(map(tuple, found)))
  if devices < 64:
    assert set(map(tuple, found)) == every_shape(devices, degrees)
  assert layouts.few_shapes(devices, degrees, number - 1) is None


def test_shapes_near_a_wish():
  found = layouts.shapes_near(16, [2, 4, 8], np.array([2.0, 1.0, 1.0]), 1)
  np.testing.assert_array_equal(found, [[2, 1, 1]])
  # 1,024 devices have too many shapes to list: those around, all of them whole
  degrees = [1, 2, 4, 8, 16, 32, 64]
  wish = np.array([100.3, 50.2, 40.7, 20.1, 9.6, 4.4, 1.2])
  wish *= 1024 / (wish @ degrees)
  found = layouts.shapes_near(1024, degrees, wish, 50)
  assert len(found) == 50 == len(set(map(tuple, found)))
  np.testing.assert_array_equal(found @ degrees, 1024)
  distance = (abs(found - wish) * degrees).sum(1)
  assert (np.diff(distance) >= -1e-9).all() and distance[0] < 0.1 * 1024


@pytest.mark.parametrize("speed", [1.0, np.array([1.0, 0.5, 1.0, 0.7])])
def test_layouts_are_aligned_and_use_every_device_once(speed):
  bandwidth = {d: 1e10 for d in (2, 4, 8)}
  cluster = presets.cluster(4, 4, 30 * 2.0**30, bandwidth, speed)
  kinds = cost.kinds(cluster, presets.gpt("7b")._replace(parameters=2**30))
  shapes = layouts.few_shapes(16, [1, 2, 4, 8], 1000)
  laid = layouts.place(shapes, kinds, 16)
  seen = set()
  for kind, first in zip(laid.kind, laid.first, strict=True):
    degree = kinds.degree[kind[kind >= 0]]
    blocks = list(zip(degree, first[first >= 0], strict=True))
    assert all(start % d == 0 for d, start in blocks)
    covered = [i for d, start in blocks for i in range(start, start + d)]
    assert sorted(covered) == list(range(16))
    for j, (d, start) in zip(kind[kind >= 0], blocks, strict=True):
      assert kinds.blocks[d][start // d] == j
    seen.add(tuple((degree == d).sum() for d in (1, 2, 4, 8)))
  assert seen == set(map(tuple, shapes))


def test_large_groups_go_to_the_fast_devices_and_to_the_slow():
  cluster = presets.cluster(2, 4, 30 * 2.0**30, {4: 1e10}, np.array([0.5, 1.0]))
  kinds = cost.kinds(cluster, presets.gpt("7b")._replace(parameters=2**30))
  laid = layouts.place(np.array([[4, 1]]), kinds, 8)
  large = laid.first[np.arange(2), 0]
  assert sorted(large) == [0, 4]
