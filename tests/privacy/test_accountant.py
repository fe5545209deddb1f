"""The accountant against closed forms, integrals and common sense."""

import math
import sys

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from fedjax_het.core.errors import UserError
from fedjax_het.privacy import epsilon, noise_for

DELTA = 1e-5


def _gaussian_delta(eps, mu):
  """Balle and Wang 2018, Theorem 8, for sensitivity / std = mu."""
  above = scipy.stats.norm.cdf(mu / 2 - eps / mu)
  return above - math.exp(eps) * scipy.stats.norm.cdf(-mu / 2 - eps / mu)


def _gaussian_epsilon(mu, delta):
  return scipy.optimize.brentq(
    lambda eps: _gaussian_delta(eps, mu) - delta, 0, 300
  )


@pytest.fixture(scope="module", autouse=True)
def installed():
  pytest.importorskip("dp_accounting", reason="pip install .[privacy]")


@pytest.mark.parametrize("rounds", [1, 30])
@pytest.mark.parametrize("z", [0.8, 2.0, 9.0])
def test_without_sampling_it_is_the_analytic_gaussian(z, rounds):
  """The sum moves by 2 S; k Gaussians are one with mu times sqrt(k)."""
  got = epsilon(z, cohort_size=50, num_clients=50, rounds=rounds, delta=DELTA)
  want = _gaussian_epsilon(2 / z * math.sqrt(rounds), DELTA)
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("z", [1.0, 3.0])
def test_with_sampling_it_lies_between_what_is_possible(z, share):
  """Above one pair of neighbours by integration, below no sampling at all.

  All others send 0 and one client sends +S or -S: the sum is
  (1 - q) N(0, z^2) + q N(+-1, z^2), and no accountant may say less.
  """
  got = epsilon(
    z,
    cohort_size=round(share * 1000),
    num_clients=1000,
    rounds=1,
    delta=DELTA,
  )

  def delta(eps):
    def excess(x):
      def density(at):
        here = scipy.stats.norm.pdf(x, at, z)
        return (1 - share) * scipy.stats.norm.pdf(x, 0, z) + share * here

      return np.maximum(density(1) - math.exp(eps) * density(-1), 0)

    x = np.linspace(-12 * z, 12 * z, 100_001)
    return scipy.integrate.trapezoid(excess(x), x)

  possible = scipy.optimize.brentq(lambda eps: delta(eps) - DELTA, 0, 100)
  assert possible < got <= _gaussian_epsilon(2 / z, DELTA) * (1 + 1e-9)


def test_more_noise_fewer_rounds_smaller_cohorts_are_more_private():
  base = dict(cohort_size=20, num_clients=1000, rounds=100, delta=DELTA)
  eps = epsilon(1.5, **base)
  assert 0 < epsilon(2.5, **base) < eps
  assert epsilon(1.5, **base | dict(rounds=50)) < eps
  assert epsilon(1.5, **base | dict(cohort_size=10)) < eps
  assert epsilon(1.5, **base | dict(num_clients=2000)) < eps
  assert epsilon(1.5, **base | dict(delta=1e-4)) < eps
  assert eps < epsilon(1.5, **base | dict(cohort_size=1000)) / 3


def test_no_noise_and_endless_noise():
  base = dict(cohort_size=2, num_clients=9, rounds=3, delta=DELTA)
  assert epsilon(0.0, **base) == math.inf
  assert epsilon(math.inf, **base) == 0


@pytest.mark.parametrize(
  "target, cohort_size", [(8.0, 30), (1.0, 300), (30.0, 300)]
)
def test_noise_for_is_the_inverse_rounded_up(target, cohort_size):
  base = dict(cohort_size=cohort_size, num_clients=300, rounds=20, delta=DELTA)
  z = noise_for(target, tolerance=0.05, **base)
  assert epsilon(z, **base) <= target < epsilon(z / 1.05, **base)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(cohort_size=0), "cohort of 0"),
    (dict(cohort_size=11), "cohort of 11"),
    (dict(rounds=0), "rounds"),
    (dict(delta=0.0), "delta"),
    (dict(delta=1.0), "delta"),
  ],
)
def test_numbers_that_make_no_sense(change, message):
  base = dict(cohort_size=5, num_clients=10, rounds=3, delta=DELTA) | change
  with pytest.raises(UserError, match=message):
    epsilon(1.0, **base)


def test_noise_and_target_that_make_no_sense():
  base = dict(cohort_size=5, num_clients=10, rounds=3, delta=DELTA)
  with pytest.raises(UserError, match="noise_multiplier"):
    epsilon(-1.0, **base)
  with pytest.raises(UserError, match="epsilon"):
    noise_for(0.0, **base)


def test_without_the_library_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "dp_accounting", None)
  with pytest.raises(UserError, match=r"fedjax-het\[privacy\]"):
    epsilon(1.0, cohort_size=5, num_clients=10, rounds=3, delta=DELTA)
