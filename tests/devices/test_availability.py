"""Who is online when."""

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.devices import availability, profiles


def fleet(num_clients=50):
  return profiles.parse("constant", num_clients)


def test_bernoulli_is_a_coin():
  online = availability.bernoulli(200, 0.3, slots=500)
  assert abs(online.mean() - 0.3) < 5 * (0.21 / online.size) ** 0.5
  again = (online[1:] & online[:-1]).mean()  # no memory
  assert abs(again - 0.09) < 5 * (0.0819 / online.size) ** 0.5


@pytest.mark.parametrize("share, hours", [(0.25, 6), (0.01, 1), (1.0, 24)])
def test_diurnal_is_one_stretch_a_day(share, hours):
  online = availability.diurnal(100, share)
  np.testing.assert_array_equal(online.sum(0), hours)
  starts = (online & ~np.roll(online, 1, axis=0)).sum(0)
  np.testing.assert_array_equal(starts, 0 if hours == 24 else 1)


def test_markov_stays_as_long_as_it_says():
  online = availability.markov(400, 0.4, mean_on=5.0, slots=3000)
  assert abs(online.mean() - 0.4) < 0.01
  begun = online[1:] & ~online[:-1]
  length = online.sum() / begun.sum()
  np.testing.assert_allclose(length, 5.0, rtol=0.03)


def test_attach_and_parse():
  devices = availability.parse("diurnal:0.5", fleet())
  assert devices.online.shape == (24, 50) and devices.slot_seconds == 3600
  same = availability.parse("always", fleet())
  assert np.all(same.online)
  trace = np.ones((3, 50), bool)
  assert availability.attach(fleet(), trace, 60).slot_seconds == 60


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: availability.parse("diurnall:0.5", fleet()), "diurnal"),
    (lambda: availability.parse("diurnal", fleet()), "diurnal:SHARE"),
    (lambda: availability.parse("bernoulli:0", fleet()), r"in \(0, 1\]"),
    (lambda: availability.markov(5, 1.0), "share below 1"),
    (lambda: availability.markov(5, 0.9, mean_on=1.5), "at least 9"),
    (lambda: availability.attach(fleet(), np.ones((3, 4), bool)), "slots, 50"),
    (lambda: availability.attach(fleet(), np.ones((3, 50))), "float64"),
    (lambda: availability.attach(fleet(), np.zeros((3, 50), bool)), "slot 0"),
    (lambda: availability.attach(fleet(), np.ones((3, 50), bool), 0), "posi"),
  ],
)
def test_mistakes(call, message):
  with pytest.raises(UserError, match=message):
    call()
