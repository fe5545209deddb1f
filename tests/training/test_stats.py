"""Intervals against SciPy and against simulation; verdicts at their bounds."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from fedjax_het.training.stats import (
  Interval,
  first_reach,
  judge,
  mean_interval,
  paired_interval,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 5, 30])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_interval_is_scipys(n, level):
  values = RNG.normal(3, 2, n)
  got = mean_interval(values, level)
  low, high = scipy_stats.t.interval(
    level, n - 1, loc=np.mean(values), scale=scipy_stats.sem(values)
  )
  np.testing.assert_allclose(got[:3], (np.mean(values), low, high), rtol=1e-12)
  assert got.seeds == n


def test_paired_interval_is_scipys_paired_test():
  a, b = RNG.normal(0.8, 0.1, 7), RNG.normal(0.7, 0.1, 7)
  expected = scipy_stats.ttest_rel(a, b).confidence_interval(0.9)
  got = paired_interval(a, b, 0.9)
  np.testing.assert_allclose((got.low, got.high), expected, rtol=1e-12)
  assert got.mean == pytest.approx(np.mean(a) - np.mean(b))


def test_interval_covers_the_mean_as_often_as_it_says():
  """Brute force: 4000 experiments of 4 seeds; sd of the share is 0.0063."""
  hits = 0
  for values in RNG.normal(1.5, 0.3, (4000, 4)):
    interval = mean_interval(values, 0.8)
    hits += interval.low <= 1.5 <= interval.high
  assert abs(hits / 4000 - 0.8) < 0.025


def test_pairing_takes_out_what_the_seeds_share():
  shared = RNG.normal(0, 10, 6)
  a, b = shared + 1 + RNG.normal(0, 0.1, 6), shared
  paired = paired_interval(a, b)
  assert 0.7 < paired.low < paired.high < 1.3
  apart = mean_interval(a).high - mean_interval(a).low
  assert apart > 20 * (paired.high - paired.low)


def test_degenerate_samples():
  one = mean_interval([0.5])
  assert one[:4] == (0.5, -math.inf, math.inf, 1)
  assert str(one) == "0.5 (n = 1)"
  same = mean_interval([0.25, 0.25, 0.25])
  assert same[:3] == (0.25, 0.25, 0.25)
  assert all(map(math.isnan, mean_interval([1.0, math.nan, 2.0])[:3]))
  for bad in ([], np.zeros((0, 3))):
    with pytest.raises(ValueError):
      mean_interval(bad)
  with pytest.raises(ValueError, match="level"):
    mean_interval([1.0, 2.0], 95)
  with pytest.raises(ValueError, match="pairs"):
    paired_interval([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
  "low, high, criterion, outcome",
  [
    (0.1, 0.3, {"at_least": 0.1}, "PASS"),
    (0.1, 0.3, {"at_least": 0.2}, "FAIL"),  # doubt
    (0.1, 0.3, {"at_most": 0.3}, "PASS"),
    (0.1, 0.3, {"at_most": 0.2}, "FAIL"),
    (-0.01, 0.02, {"null_within": 0.02}, "NULL"),
    (-0.01, 0.03, {"null_within": 0.02}, "FAIL"),
    (-0.03, 0.01, {"null_within": 0.02}, "FAIL"),
    (math.nan, math.nan, {"at_least": 0.0}, "FAIL"),
    (math.nan, math.nan, {"null_within": 1.0}, "FAIL"),
    (-math.inf, math.inf, {"at_most": 1.0}, "FAIL"),  # one seed
  ],
)
def test_judge(low, high, criterion, outcome):
  interval = Interval((low + high) / 2, low, high, 5)
  assert judge(interval, **criterion) == outcome


@pytest.mark.parametrize("criterion", [{}, {"at_least": 0, "at_most": 1}])
def test_judge_wants_one_criterion(criterion):
  with pytest.raises(ValueError):
    judge(Interval(0, 0, 0, 5), **criterion)


def test_first_reach_is_the_loop():
  x = np.array([10, 20, 30, 40])
  y = RNG.uniform(0, 1, (50, 4))
  expected = [
    next((xi for xi, yi in zip(x, row, strict=True) if yi >= 0.8), math.inf)
    for row in y
  ]
  np.testing.assert_array_equal(first_reach(x, y, 0.8), expected)
  assert math.inf in expected
