"""Schedulers against slow ones, their books, and their degenerate cases."""

import collections

import numpy as np
import pytest
from slow_schedules import buffered, compass

from fedjax_het.core.errors import UserError
from fedjax_het.devices import staleness
from fedjax_het.devices.events import (
  Arrival,
  Drop,
  Merge,
  Send,
  Simulation,
  Stop,
  Task,
)
from fedjax_het.devices.schedules import (
  FedAsync,
  FedAT,
  FedBuff,
  FedCompass,
  Synchronous,
)

COUNT = 9
WEIGHTS = np.random.default_rng(0).integers(3, 30, COUNT).astype(float)


def times(seed=0, jitter=0.3, spread="exponential"):
  rng = np.random.default_rng(seed)
  slow = {
    "exponential": rng.exponential(1.0, COUNT) + 0.1,
    "normal": rng.normal(1.0, 0.3, COUNT).clip(0.2),
    "equal": np.ones(COUNT),
  }[spread]
  noise = np.exp(jitter * rng.normal(size=100_000))

  def lasts(task, client, steps):
    return float((slow[client] * steps + 0.5) * noise[task])

  return lasts, slow


def merges_of(scheduler, lasts, merges):
  """As `slow_schedules` writes them."""
  tasks, version, out, now = {}, 0, [], 0.0
  for event in Simulation(
    scheduler, lambda t, c, s, _: lasts(t, c, s), arrivals=10**6
  ):
    if isinstance(event, Task):
      tasks[event.id] = event
    elif isinstance(event, Arrival):
      now = event.task.arrives
    elif isinstance(event, Merge):
      done = [tasks[i] for i in event.tasks]
      out.append(
        [
          (t.client, t.steps, w, version - t.version)
          for t, w in zip(done, event.changes[0], strict=True)
        ]
      )
      version += 1
      if len(out) == merges:
        return out
  raise AssertionError(f"only {len(out)} merges by {now}")


def same(got, want):
  assert len(got) == len(want)
  for mine, (_, theirs) in zip(got, want, strict=True):
    mine, theirs = np.array(mine), np.array(theirs)
    assert mine.shape == theirs.shape
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_buffers_against_the_slow_simulator(size):
  lasts, _ = times()

  def make():
    if size == 1:
      return FedAsync(WEIGHTS, steps=5, rate=0.7, mix=False)
    return FedBuff(WEIGHTS, buffer_size=size, steps=5, rate=0.7)

  order = [send.client for send in make().start()]
  want = buffered(WEIGHTS, lasts, order, 5, size, 0.7, 0.5, merges=200)
  same(merges_of(make(), lasts, 200), want)


@pytest.mark.parametrize("spread", ["exponential", "normal", "equal"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("slack", [1.0, 1.2, 2.0])
def test_compass_against_the_slow_simulator(seed, spread, slack):
  lasts, _ = times(seed, spread=spread)
  want = compass(WEIGHTS, lasts, 4, 20, slack, 0.9, 0.5, 0.1, merges=150)
  scheduler = FedCompass(WEIGHTS, min_steps=4, max_steps=20, slack=slack)
  same(merges_of(scheduler, lasts, 150), want)
  late = [row[3] for _, rows in want for row in rows]
  sizes = collections.Counter(len(rows) for _, rows in want)
  assert max(late) > 1 and len(sizes) > 2  # the case has groups and staleness


def all_schedulers(slow):
  return {
    "synchronous": Synchronous(WEIGHTS, steps=5),
    "sampled": Synchronous(WEIGHTS, cohort_size=3, steps=5, momentum=0.5),
    "fed_nova": Synchronous(WEIGHTS, steps=range(1, 10), normalise=True),
    "fed_async": FedAsync(WEIGHTS, in_flight=4, steps=5),
    "fed_buff": FedBuff(WEIGHTS, in_flight=7, buffer_size=3, steps=5),
    "fed_at": FedAT(WEIGHTS, slow, tiers=3, steps=5),
    "fed_at_sampled": FedAT(WEIGHTS, slow, tiers=2, cohort_size=2, steps=5),
    "fed_compass": FedCompass(WEIGHTS, min_steps=4, max_steps=20),
  }


@pytest.mark.parametrize("name", all_schedulers(np.ones(COUNT)))
def test_every_update_has_one_fate(name):
  lasts, slow = times(3)
  scheduler = all_schedulers(slow)[name]
  simulation = Simulation(
    scheduler, lambda t, c, s, _: lasts(t, c, s), stops=[40.0, 333.3]
  )
  sent, arrived, used, busy = {}, set(), [], set()
  for event in simulation:
    if isinstance(event, Task):
      assert event.client not in busy  # a client does one thing at a time
      busy.add(event.client)
      assert event.arrives > event.sent >= 0 and event.id == len(sent)
      sent[event.id] = event
    elif isinstance(event, Arrival):
      busy.discard(event.task.client)
      arrived.add(event.task.id)
    elif isinstance(event, Merge | Drop):
      used += event.tasks
    else:
      assert isinstance(event, Stop)
      assert all(
        t.arrives <= event.at for t in sent.values() if t.id in arrived
      )
  assert len(used) == len(set(used)) > 50 and set(used) <= arrived
  late = {i for i, t in sent.items() if t.arrives <= 333.3}
  assert late == arrived
  books = simulation.books
  assert books.sent == len(sent) and books.merged == len(used)
  assert books.dropped == 0 and books.waiting == len(arrived) - len(used)
  assert books.on_the_way == len(sent) - len(arrived)


def test_one_tier_and_full_buffers_are_synchronous_rounds():
  lasts, slow = times(4)
  plain = merges_of(Synchronous(np.ones(COUNT), steps=5), lasts, 30)
  full = FedBuff(np.ones(COUNT), buffer_size=COUNT, steps=5)

  def shares(merges):
    return [[(c, round(w, 12)) for c, _, w, _ in sorted(m)] for m in merges]

  # with equal speeds the buffer fills with one update of everybody
  alike, _ = times(4, jitter=0.0, spread="equal")
  assert shares(merges_of(full, alike, 30)) == shares(plain)
  tier = FedAT(np.ones(COUNT), slow, tiers=1, steps=5)
  events = Simulation(tier, lambda t, c, s, _: lasts(t, c, s), arrivals=300)
  for merge in (e for e in events if isinstance(e, Merge)):
    np.testing.assert_allclose(merge.models, 1 / COUNT)
    np.testing.assert_allclose(merge.keep, 0)


def test_compass_with_equal_speeds_forms_one_group():
  alike, _ = times(0, jitter=0.0, spread="equal")
  got = merges_of(FedCompass(WEIGHTS, min_steps=4, max_steps=20), alike, 40)
  assert [len(m) for m in got[:COUNT]] == [1] * COUNT  # the first arrivals
  assert [len(m) for m in got[COUNT:]] == [COUNT] * 31
  assert {row[3] for m in got[COUNT + 1 :] for row in m} == {0}


def test_fed_at_weighs_slow_tiers_as_fast_ones():
  """Chai et al.: tier m counts as often as tier M + 1 - m was updated."""
  lasts, slow = times(5)
  scheduler = FedAT(WEIGHTS, slow, tiers=3, steps=5)
  tier_of, updates = {}, [1, 1, 1]
  for event in Simulation(
    scheduler, lambda t, c, s, _: lasts(t, c, s), arrivals=400
  ):
    if isinstance(event, Task):
      tier_of[event.id] = event.tag[0]
    elif isinstance(event, Merge):
      (tier,) = {tier_of[i] for i in event.tasks}
      updates[tier] += 1
      weight = [updates[2 - m] / sum(updates) for m in range(3)]
      # global = sum_m weight_m w_m, with w_m of the tier replaced
      tiers = np.array([event.keep[0, 1 + m] for m in range(3)])
      tiers[tier] += event.models[0].sum()
      np.testing.assert_allclose(tiers, weight, rtol=1e-12)
      np.testing.assert_allclose(event.models[1 + tier].sum(), 1)
  assert updates[0] > updates[1] > updates[2] > 1


def test_fed_nova_weights():
  lasts, _ = times(6)
  steps = np.arange(1, COUNT + 1)
  scheduler = Synchronous(WEIGHTS, steps=steps, normalise=True)
  (rows,) = merges_of(scheduler, lasts, 1)
  share = WEIGHTS / WEIGHTS.sum()
  for client, _, weight, _ in rows:
    want = share[client] / steps[client] * sum(share * steps)
    np.testing.assert_allclose(weight, want)


@pytest.mark.parametrize(
  ("name", "tau", "want"),
  [
    ("constant", 7, 1.0),
    ("polynomial:0.5", 3, 0.5),
    ("polynomial:-0.5", 3, 2.0),
    ("hinge:10/4", 4, 1.0),
    ("hinge:10/4", 6, 1 / 21),
  ],
)
def test_staleness(name, tau, want):
  assert staleness.parse(name)(tau) == pytest.approx(want)


class Idler:
  """Sends one update and then nothing; merges it twice if told to."""

  models, looks = (1.0,), False

  def __init__(self, merges):
    self.merges = merges

  def start(self):
    return [Send(0, 1)]

  def arrive(self, now, task, reported):
    return [Merge([task.id], np.ones((1, 1)))] * self.merges


def test_mistakes():
  def duration(*_):
    return 1.0

  with pytest.raises(UserError, match="give stops or arrivals"):
    Simulation(Idler(0), duration)
  with pytest.raises(UserError, match="must be positive and increase"):
    Simulation(Idler(0), duration, stops=[2.0, 1.0])
  with pytest.raises(UserError, match="nobody on the way"):
    list(Simulation(Idler(1), duration, arrivals=2))
  with pytest.raises(ValueError, match="update 0 is merged or dropped"):
    list(Simulation(Idler(2), duration, arrivals=2))
  for bad in ([], [1.0, 0.0], [1.0, np.nan]):
    with pytest.raises(UserError, match="one positive number a client"):
      FedAsync(bad)
  with pytest.raises(UserError, match="10 clients at a time: give 1 to 9"):
    FedBuff(WEIGHTS, in_flight=10)
  with pytest.raises(UserError, match="give at most 1"):
    FedAsync(WEIGHTS, rate=1.5)
  with pytest.raises(UserError, match="FedNova divides by local steps"):
    Synchronous(WEIGHTS, normalise=True)
  with pytest.raises(UserError, match="momentum must be in"):
    Synchronous(WEIGHTS, momentum=1.0)
  with pytest.raises(UserError, match="10 tiers of 9 clients"):
    FedAT(WEIGHTS, np.ones(COUNT), tiers=10)
  with pytest.raises(UserError, match="4 clients a round in tiers of 3"):
    FedAT(WEIGHTS, np.ones(COUNT), tiers=3, cohort_size=4)
  with pytest.raises(UserError, match="min_steps 30 above max_steps 20"):
    FedCompass(WEIGHTS, min_steps=30, max_steps=20)
  with pytest.raises(UserError, match="slack 0.9"):
    FedCompass(WEIGHTS, slack=0.9)
  with pytest.raises(UserError, match="did you mean 'hinge'"):
    staleness.parse("hing:1")
  with pytest.raises(UserError, match="does not take '1/2/3'"):
    staleness.parse("polynomial:1/2/3")
