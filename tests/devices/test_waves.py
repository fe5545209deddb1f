"""Waves against one update at a time; packing, meshes, resume, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_het.algorithms import fed_avg, fed_prox, scaffold
from fedjax_het.core import mesh, rounds
from fedjax_het.core.cohort import client_data
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import NO_BUDGET
from fedjax_het.devices import profiles, waves
from fedjax_het.devices.durations import durations
from fedjax_het.devices.events import Drop, Merge, Send, Simulation, Stop, Task
from fedjax_het.devices.schedules import (
  FedAsync,
  FedAT,
  FedBuff,
  FedCompass,
  Synchronous,
)
from fedjax_het.selection import uniform
from fedjax_het.training import run_async

STOPS = (3.0, 6.0, 9.0)
MODEL, DATA = tiny.mlp(), tiny.data()
DATA = DATA._replace(devices=profiles.parse("exponential", tiny.CLIENTS))
WEIGHTS = np.asarray(DATA.train.count)
RATE = jnp.float32(0.1)


def build(rate):
  return fed_avg(MODEL, optimizer=optax.sgd(rate), batch_size=4, epochs=3)


class Picky:
  """Keeps an update only if its loss is below the median so far."""

  models, looks = (1.0,), True

  def __init__(self):
    self.losses = []

  def start(self):
    return [Send(client, 6) for client in range(tiny.CLIENTS)]

  def arrive(self, now, task, reported):
    self.losses.append(reported)
    good = reported <= np.median(self.losses)
    fate = Merge([task.id], np.full((1, 1), 0.3)) if good else Drop([task.id])
    return [fate, Send(task.client, 3 if good else 6)]


SPEEDS = np.asarray(DATA.devices.step_seconds)
SCHEDULERS = {
  "synchronous": lambda: Synchronous(WEIGHTS, cohort_size=3, steps=6),
  "momentum": lambda: Synchronous(WEIGHTS, steps=6, momentum=0.5, rate=0.7),
  "fed_async": lambda: FedAsync(WEIGHTS, in_flight=4, steps=6),
  "fed_buff": lambda: FedBuff(WEIGHTS, buffer_size=3, steps=6),
  "fed_at": lambda: FedAT(WEIGHTS, SPEEDS, tiers=3, steps=6),
  "fed_compass": lambda: FedCompass(WEIGHTS, min_steps=2, max_steps=6),
  "picky": Picky,
}


@functools.cache
def compiled(chunk=1, devices=1):
  where = mesh.client_mesh(jax.devices()[:devices]) if devices > 1 else None
  return run_async.compile_async(build, MODEL, chunk=chunk, mesh=where)


def go(name, folder, *, programs=None, stops=STOPS, resume=False, data=DATA):
  return run_async.train(
    programs or compiled(),
    RATE,
    SCHEDULERS[name],
    data,
    duration=durations(build(0.1), DATA),
    key=jax.random.key(3),
    stops=stops,
    slots=16,
    workdir=folder,
    config={"scheduler": name},
    resume=resume,
    progress="quiet",
  )


def models(result):
  return jax.tree.map(np.asarray, result.state.models)


def one_by_one(scheduler):
  """Every update trained when it is sent; merges in float64, no slots."""
  algorithm = build(RATE)
  server_key, _, run_key = jax.random.split(jax.random.key(3), 3)
  first = jax.tree.map(
    lambda leaf: np.asarray(leaf, np.float64), algorithm.init(server_key).params
  )
  now = [
    jax.tree.map(lambda leaf, c=c: c * leaf, first) for c in scheduler.models
  ]

  @jax.jit
  def client(params, number, task, steps):
    mine = client_data(DATA, number)._replace(budget=steps)
    key = jax.random.fold_in(run_key, task)
    upload = algorithm.client(params, (), mine, key)
    return upload.message, upload.metrics["loss"]

  done, losses = {}, {}
  simulation = Simulation(
    scheduler,
    durations(algorithm, DATA),
    stops=STOPS,
    reported=losses.__getitem__,
  )
  for event in simulation:
    if isinstance(event, Task):
      start = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), now[0])
      change, loss = client(start, event.client, event.id, event.steps)
      losses[event.id] = float(loss)
      change = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), change)
      done[event.id] = change, jax.tree.map(np.add, now[0], change)
    elif isinstance(event, Merge):
      now = [_merged(event, k, now, done) for k in range(len(now))]
  return now, simulation.books


def _merged(merge, k, now, done):
  keep = np.eye(len(now)) if merge.keep is None else merge.keep
  out = jax.tree.map(np.zeros_like, now[0])
  parts = list(zip(keep[k], now, strict=True))
  for place, task in enumerate(merge.tasks):
    parts.append((merge.changes[k, place], done[task][0]))
    if merge.models is not None:
      parts.append((merge.models[k, place], done[task][1]))
  for weight, tree in parts:
    out = jax.tree.map(lambda a, b, w=weight: a + w * b, out, tree)
  return out


@pytest.mark.parametrize("name", SCHEDULERS)
def test_waves_give_what_one_by_one_gives(name, tmp_path):
  result = go(name, tmp_path)
  want, books = one_by_one(SCHEDULERS[name]())
  got = models(result)
  for k, tree in enumerate(want):
    for leaf in tree:
      np.testing.assert_allclose(got[leaf][k], tree[leaf], rtol=1e-4, atol=2e-5)
  logged = [r for r in result.records if "sent" in r]
  assert sum(r["sent"] for r in logged) == books.sent
  assert sum(r["merged"] for r in logged) == books.merged > 10
  assert logged[-1]["waiting"] == books.waiting
  size = 4 * (12 * 9 + 9 * 3)
  assert sum(r["down_bytes"] for r in logged) == size * books.sent
  arrived = books.sent - books.on_the_way
  assert sum(r["up_bytes"] for r in logged) == size * arrived
  seconds = [r["eval/seconds"] for r in result.records if "eval/seconds" in r]
  assert tuple(seconds) == STOPS


@pytest.mark.parametrize(("chunk", "devices"), [(3, 1), (1, 2), (2, 3)])
def test_packing_changes_nothing(chunk, devices, tmp_path):
  plain = models(go("fed_compass", tmp_path / "a"))
  packed = models(
    go("fed_compass", tmp_path / "b", programs=compiled(chunk, devices))
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    plain,
    packed,
  )


@pytest.mark.parametrize("name", ["fed_buff", "picky"])
def test_a_resumed_run_ends_with_the_same_bits(name, tmp_path):
  whole = go(name, tmp_path / "a")
  go(name, tmp_path / "b", stops=STOPS[:2])
  rest = go(name, tmp_path / "b", resume=True)
  jax.tree.map(np.testing.assert_array_equal, models(whole), models(rest))
  assert whole.records == rest.records


def test_full_batches_in_lockstep_are_the_rounds_of_the_engine(tmp_path):
  """Equal speeds and one full batch: no draw matters, all rules are FedAvg."""
  alike = profiles.parse("constant,jitter=0", tiny.CLIENTS)
  data = DATA._replace(devices=alike)

  def full(rate):
    return fed_avg(MODEL, optimizer=optax.sgd(rate), batch_size=20)

  programs = run_async.compile_async(full, MODEL)
  lasts = durations(full(0.1), data)
  each = lasts(0, 0, 1, 0.0)
  state = rounds.init_state(full(0.1), jax.random.key(3), tiny.CLIENTS)
  step = jax.jit(rounds.make_round(full(0.1), uniform(tiny.CLIENTS)))
  for _ in range(4):
    state, _ = step(state, DATA)
  for number, make in enumerate(
    [
      lambda: Synchronous(WEIGHTS),
      lambda: FedBuff(WEIGHTS, buffer_size=tiny.CLIENTS),
      lambda: FedAT(WEIGHTS, np.ones(tiny.CLIENTS), tiers=1),
    ]
  ):
    result = run_async.train(
      programs,
      RATE,
      make,
      data,
      duration=lasts,
      key=jax.random.key(3),
      stops=[4.5 * each],
      workdir=tmp_path / str(number),
      config={},
      progress="quiet",
    )
    got = jax.tree.map(lambda leaf: leaf[0], models(result))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      got,
      jax.tree.map(np.asarray, state.server.params),
    )


def test_a_plan_trains_each_update_once_and_before_it_is_merged():
  for name in ("fed_async", "fed_at", "fed_compass", "synchronous"):
    lasts = durations(build(0.1), DATA)
    events = list(Simulation(SCHEDULERS[name](), lasts, stops=[30.0]))
    sent = [e for e in events if isinstance(e, Task)]
    items = list(waves.plan(iter(events), SCHEDULERS[name]()))
    trained = np.concatenate(
      [item.task for item in items if isinstance(item, waves.Wave)]
    )
    assert len(trained) == len(set(trained.tolist()))
    merged = {i for e in events if isinstance(e, Merge) for i in e.tasks}
    assert merged <= set(trained.tolist()) <= {t.id for t in sent}
    assert [i for i in items if isinstance(i, Stop)] == [Stop(0, 30.0)]
    # an update's slot is its own from its wave to its merge
    need = waves.slots_needed(items)
    assert need == in_memory(events)
    batches = sum(isinstance(item, waves.Wave) for item in items)
    assert batches < len(trained) / 1.5


def in_memory(events):
  """The most updates that are sent and not yet merged, at any moment."""
  size = most = 0
  for event in events:
    size += isinstance(event, Task)
    if isinstance(event, Merge | Drop):
      size -= len(event.tasks)
    most = max(most, size)
  return most


def test_updates_that_are_not_finite_change_nothing(tmp_path):
  row = int(DATA.train.index[2, 0])
  bad = DATA._replace(
    examples=DATA.examples._replace(x=DATA.examples.x.at[row].set(jnp.nan))
  )
  result = go("fed_async", tmp_path, data=bad)
  assert all(np.isfinite(leaf).all() for leaf in models(result).values())
  logged = [r for r in result.records if "dropped" in r]
  clients = {i for r in logged for i in r["dropped_clients"]}
  assert clients == {2} and sum(r["dropped"] for r in logged) > 1


def test_durations_are_those_of_the_clock():
  fleet = profiles.parse("lognormal:1,jitter=0", tiny.CLIENTS)
  data = DATA._replace(devices=fleet)
  lasts = durations(build(0.1), data)
  size = 4 * (12 * 9 + 9 * 3)
  for client in range(tiny.CLIENTS):
    own = -(-int(WEIGHTS[client]) // 4) * 3
    for steps in (2, NO_BUDGET):
      want = (
        min(steps, own) * float(fleet.step_seconds[client])
        + size / float(fleet.up_rate[client])
        + size / float(fleet.down_rate[client])
      )
      assert lasts(5, client, steps, 7.0) == pytest.approx(want, rel=1e-6)
  # update 7 takes as long whatever was asked before
  noisy = DATA._replace(devices=profiles.parse("constant", tiny.CLIENTS))
  one, other = durations(build(0.1), noisy), durations(build(0.1), noisy)
  other(1, 0, 3, 0.0)
  assert one(7, 1, 3, 0.0) == other(7, 1, 3, 9.0) != one(8, 1, 3, 0.0)


def test_whoever_is_offline_starts_later():
  fleet = profiles.parse("constant,jitter=0", tiny.CLIENTS)
  online = np.ones((4, tiny.CLIENTS), bool)
  online[:3, 1] = False
  fleet = fleet._replace(
    online=jnp.asarray(online), slot_seconds=jnp.float32(10)
  )
  lasts = durations(build(0.1), DATA._replace(devices=fleet))
  busy = lasts(0, 0, 3, 0.0)
  assert lasts(0, 1, 3, 0.0) == pytest.approx(30 + busy)
  assert lasts(0, 1, 3, 25.0) == pytest.approx(5 + busy)
  assert lasts(0, 1, 3, 35.0) == pytest.approx(busy)
  assert lasts(0, 1, 3, 40.0) == pytest.approx(30 + busy)
  never = fleet._replace(online=fleet.online.at[:, 2].set(False))
  with pytest.raises(UserError, match="1 clients are never online"):
    durations(build(0.1), DATA._replace(devices=never))


def test_mistakes(tmp_path):
  with pytest.raises(UserError, match="time needs devices"):
    durations(build(0.1), DATA._replace(devices=None))
  stateful = run_async.compile_async(
    lambda rate: scaffold(
      MODEL, rate=rate, batch_size=4, num_clients=tiny.CLIENTS
    ),
    MODEL,
  )
  with pytest.raises(UserError, match="clients keep state"):
    go("fed_buff", tmp_path / "a", programs=stateful)
  prox = run_async.compile_async(
    lambda rate: fed_prox(
      MODEL, optimizer=optax.sgd(rate), batch_size=4, mu=0.1
    ),
    MODEL,
  )
  go("fed_buff", tmp_path / "b", programs=prox, stops=STOPS[:1])
  arguments = {
    "duration": durations(build(0.1), DATA),
    "key": jax.random.key(0),
    "stops": STOPS,
    "config": {},
    "progress": "quiet",
  }
  with pytest.raises(UserError, match="give slots"):
    run_async.train(
      compiled(), RATE, Picky, DATA, workdir=tmp_path / "c", **arguments
    )
  with pytest.raises(UserError, match="more than 2 updates are in memory"):
    run_async.train(
      compiled(),
      RATE,
      SCHEDULERS["fed_buff"],
      DATA,
      workdir=tmp_path / "d",
      slots=2,
      **arguments,
    )
