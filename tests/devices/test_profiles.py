"""Fleets: their distributions, and what they refuse."""

import numpy as np
import pytest
from scipy import stats

from fedjax_het.core.errors import UserError
from fedjax_het.devices import profiles

N = 4000


@pytest.mark.parametrize(
  "spec, cdf",
  [
    ("uniform:0.5", stats.uniform(0.5, 1).cdf),
    ("normal:0.2", stats.norm(1, 0.2).cdf),
    ("lognormal:0.7", stats.lognorm(0.7).cdf),
    ("exponential", stats.expon().cdf),
  ],
)
def test_factors_have_their_distribution(spec, cdf):
  devices = profiles.parse(f"{spec},step_seconds=3", N, seed=1)
  factors = np.asarray(devices.step_seconds, np.float64) / 3
  above = factors[factors > profiles.FLOOR * 1.001]
  low = cdf(profiles.FLOOR)
  share = lambda x: (cdf(x) - low) / (1 - low)  # noqa: E731
  assert stats.kstest(above, share).pvalue > 1e-3
  np.testing.assert_allclose(1 - above.size / N, low, atol=0.02)
  # slow devices are small; links have factors of their own
  np.testing.assert_allclose(devices.memory * factors, 2.048e9, rtol=1e-5)
  far = 2.5e5 / np.asarray(devices.up_rate, np.float64)
  np.testing.assert_allclose(1.25e6 / devices.down_rate, far, rtol=1e-5)
  assert abs(stats.spearmanr(factors, far).statistic) < 0.1


def test_tiers_have_equal_shares():
  devices = profiles.parse("tiers:1/2/8,step_seconds=1", 10)
  factors, sizes = np.unique(devices.step_seconds, return_counts=True)
  np.testing.assert_array_equal(factors, [1, 2, 8])
  assert sizes.max() - sizes.min() <= 1


def test_a_constant_fleet_is_as_its_options_say():
  devices = profiles.parse(
    "constant,step_seconds=0.5,up_mbit=8,down_mbit=16,memory_mb=10,"
    "compute_watts=4,radio_watts=2,jitter=0.1",
    3,
  )
  for name, want in {
    "step_seconds": 0.5,
    "up_rate": 1e6,
    "down_rate": 2e6,
    "memory": 1e7,
    "compute_watts": 4,
    "radio_watts": 2,
    "compute_jitter": 0.1,
    "network_jitter": 0.1,
  }.items():
    np.testing.assert_allclose(getattr(devices, name), np.full(3, want))
  assert np.all(devices.online)


def test_seeds():
  a, b, c = (profiles.parse("exponential", 5, seed=s) for s in (0, 0, 1))
  np.testing.assert_array_equal(a.step_seconds, b.step_seconds)
  assert np.any(a.step_seconds != c.step_seconds)


def test_devices_that_are_too_small_are_never_online():
  devices = profiles.parse("tiers:1/2/4,memory_mb=100", 9)
  capable = profiles.capable(devices, 45e6)
  np.testing.assert_array_equal(
    capable.online[0], np.asarray(devices.memory) >= 45e6
  )
  assert 0 < capable.online.sum() < 9
  with pytest.raises(UserError, match="needs 200 MB and the largest of the 9"):
    profiles.capable(devices, 200e6)


@pytest.mark.parametrize(
  "spec, message",
  [
    ("log_normal", "did you mean"),
    ("lognormal:a", "'a' is not a number"),
    ("lognormal:1/2", "does not take 2 values"),
    ("lognormal:-1", "sigma must be from 0"),
    ("uniform:2", "half_width must be from 0 to 1"),
    ("tiers:0/1", "every factor of tiers"),
    ("constant,step_second=1", "step_seconds"),
    ("constant,up_mbit", "is not OPTION=VALUE"),
    ("constant,up_mbit=0", "up_mbit must be"),
    ("constant,jitter=nan", "jitter must be"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError, match=message):
    profiles.parse(spec, 4)
  with pytest.raises(UserError, match="num_clients"):
    profiles.parse("constant", 0)
