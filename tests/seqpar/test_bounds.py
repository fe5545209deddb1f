"""Bounds against exhaustive search, closed forms, a plain linear program."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from tiny_plans import Tiny, best_barrier, best_laminar

from fedjax_het.seqpar import bounds, presets
from fedjax_het.seqpar.problem import make_problem

TINY = Tiny()


def problem(lengths, tiny=TINY, degrees=None):
  return make_problem(lengths, tiny.cluster(), tiny.model(), degrees)


@given(
  st.lists(st.integers(1, 40), min_size=1, max_size=5),
  st.floats(0, 0.1),
  st.floats(0, 3),
  st.floats(0.01, 2),
)
@settings(deadline=None, max_examples=60)
def test_never_above_the_optimum(lengths, a1, b, slope):
  tiny = Tiny(
    a1=a1, b=b, exchange=((1, 0.0), (2, slope / 2), (4, slope)), capacity=10
  )
  made = problem(lengths, tiny)
  lengths = tuple(lengths)
  barrier = best_barrier(lengths, tiny)
  assert bounds.step_bound(made, True) <= barrier * (1 + 1e-9)
  laminar = best_laminar(lengths, tiny)
  assert bounds.step_bound(made, False) <= laminar * (1 + 1e-9)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_one_micro_batch(lengths):
  """With b so large that a second micro-batch never pays."""
  tiny = Tiny(b=1000.0)
  optimum = best_barrier(tuple(lengths), tiny)
  made = problem(lengths, tiny)
  if optimum < 2000:
    found = bounds.micro_batch_bound(made)
    assert bounds.work_bound(made) <= found * (1 + 1e-12)
    assert found <= optimum * (1 + 1e-9)
  if sum(lengths) > 4 * tiny.capacity:
    assert bounds.micro_batch_bound(made) == np.inf


@pytest.mark.parametrize("seed", range(4))
def test_a_wrong_solver_cannot_make_it_wrong(seed, monkeypatch):
  """Bounds from multipliers that are made up, some of them far too large."""
  rng = np.random.default_rng(seed)

  def made_up(rows, shares, groups):
    measures, kinds = len(shares.each), shares.fits.shape[1]
    prices = rng.exponential(10.0 ** rng.integers(-2, 3), (measures, kinds))
    return prices, rng.exponential(size=len(groups) - measures * kinds)

  monkeypatch.setattr(bounds.relaxation, "propose", made_up)
  lengths = tuple(int(s) for s in rng.integers(1, 30, 5))
  made = problem(lengths)
  for _ in range(10):
    assert bounds.step_bound(made, True) <= best_barrier(lengths, TINY)
    assert bounds.step_bound(made, False) <= best_laminar(lengths, TINY)
  one = Tiny(b=1000.0, capacity=60)
  made = problem(lengths, one)
  for _ in range(10):
    assert bounds.micro_batch_bound(made) <= best_barrier(lengths, one)


def test_equal_short_sequences_meet_it():
  """16 sequences on 4 devices alone: 4 each, and nothing else is better."""
  tiny = Tiny(capacity=40)
  expected = tiny.b + 4 * tiny.seconds(10, 1)
  made = problem([10] * 16, tiny)
  assert bounds.micro_batch_bound(made) == pytest.approx(expected, rel=1e-6)
  assert bounds.step_bound(made, True) == pytest.approx(expected, rel=1e-6)
  assert bounds.step_bound(made, False) <= expected


def test_what_cannot_be_cut_counts():
  """Five sequences of 0.55 of a device: by volume they fit, one each does not.

  At most one a device, so one of them needs a group of two for itself, or a
  second turn; both take longer than 2.75 devices of work.
  """
  made = problem([55] * 5, Tiny(capacity=100, b=0.0))
  assert bounds.micro_batch_bound(made) > 1.2 * bounds.work_bound(made)


def fluid_share(made, time):
  """theta(T) by a textbook LP: a variable for every sequence and kind."""
  kinds, room = made.kinds, time - made.kinds.fixed
  size, number = len(made.lengths), len(kinds.degree)
  shares = []
  for table in (
    made.seconds / room,
    made.lengths[:, None] / kinds.tokens,
  ):
    shares += [table, np.floor(2 * table - 1e-9)]
    shares += [np.floor(3 * table - 1e-9) / 2]
  fits = made.seconds <= room
  a, b = [], []
  for share, j in itertools.product(shares, range(number)):
    row = np.zeros((size, number))
    row[:, j] = np.where(fits[:, j], share[:, j], 0)
    a.append(np.concatenate([row.ravel(), -np.eye(number)[j], [0]]))
    b.append(0.0)
  a.append(np.concatenate([np.zeros(size * number), kinds.degree, [-4]]))
  b.append(0.0)
  cover = np.zeros((size, size * number + number + 1))
  for k in range(size):
    cover[k, k * number : (k + 1) * number] = 1
  limit = [(0, 1 if ok else 0) for ok in fits.ravel()] + [(0, None)] * (
    number + 1
  )
  objective = np.zeros(size * number + number + 1)
  objective[-1] = 1
  found = linprog(objective, a, b, cover, np.ones(size), limit)
  return found.fun if found.status == 0 else np.inf


@pytest.mark.parametrize("seed", range(8))
def test_micro_batch_bound_is_the_root_of_the_fluid_program(seed):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, 18, 4 + seed)
  made = problem(lengths, Tiny(capacity=40))
  found = bounds.micro_batch_bound(made)
  assert fluid_share(made, found * (1 + 1e-3)) <= 1 + 1e-6
  # below the bound it is impossible (its own LP is as strong as the textbook's)
  assert fluid_share(made, found * (1 - 1e-3)) > 1


def test_slow_devices_count_for_less():
  """Half of the devices at a tenth of the speed: a tenth of their share."""
  tiny = Tiny(capacity=1000, b=0.0)
  slow = tiny.cluster()._replace(speed=np.array([1, 1, 0.1, 0.1]))
  made = make_problem([10] * 40, slow, tiny.model(), [1])
  total = 40 * tiny.seconds(10, 1)
  assert bounds.step_bound(made, False) == pytest.approx(total / 2.2, rel=1e-6)
  assert bounds.step_bound(made, True) == pytest.approx(total / 2.2, rel=1e-6)


def test_more_lengths_than_the_program_tells_apart():
  """Merging neighbours may weaken the bound, but not by much."""
  rng = np.random.default_rng(1)
  lengths = rng.lognormal(6, 1, 400).astype(int) + 1
  assert len(np.unique(lengths)) > 200
  cluster, model = presets.a100_cluster(), presets.gpt("7b")
  made = make_problem(lengths, cluster, model)
  bound = bounds.micro_batch_bound(made)
  cheapest = (made.seconds * made.kinds.degree).min(1).sum() / 64
  assert bound >= cheapest + made.kinds.fixed.min() - 1e-9
  assert bound <= 1.05 * (cheapest + made.kinds.fixed.min())
