"""Every selector in the engine, and each against its rule in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_het.algorithms import example
from fedjax_het.core import rounds, sweep
from fedjax_het.core.errors import UserError
from fedjax_het.devices import profiles
from fedjax_het.selection import (
  SELECTORS,
  by_weight,
  cyclic,
  fresh_loss,
  hetero_select,
  parse,
  power_of_choice,
)
from fedjax_het.selection import _hetero_select as hetero
from fedjax_het.selection import _oort as guided
from fedjax_het.selection._draw import Memory

C, ROUNDS = 3, 12
N = tiny.CLIENTS
ALGORITHM = example("fed_avg", tiny.mlp(), tiny.INPUT_SHAPE, N)


def timed(online=None):
  devices = profiles.parse("lognormal:1", N)
  if online is not None:
    devices = devices._replace(online=jnp.asarray(online)[None])
  return tiny.data()._replace(devices=devices)


def run(selector, data, num_rounds=ROUNDS, seed=5):
  state = rounds.init_state(ALGORITHM, jax.random.key(seed), N, selector)
  block = rounds.make_block(rounds.make_round(ALGORITHM, selector), num_rounds)
  return jax.jit(block)(state, data)


@pytest.mark.parametrize("name", SELECTORS)
def test_in_the_engine(name):
  """Distinct ids; scan = loop; many seeds at once; whoever is offline waits."""
  selector = parse(name, C, ROUNDS)
  data = timed()
  state, history = run(selector, data)
  ids = np.asarray(history["rounds"].ids)
  assert ids.shape == (ROUNDS, C)
  assert all(len(set(row)) == C for row in ids)
  assert len(set(ids.ravel())) == N  # nobody starves in 12 rounds
  one = jax.jit(rounds.make_round(ALGORITHM, selector))
  loop = rounds.init_state(ALGORITHM, jax.random.key(5), N, selector)
  for row in ids:
    loop, cohort = one(loop, data)
    np.testing.assert_array_equal(cohort.ids, row)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    loop.selector,
    state.selector,
  )
  many = sweep.over_runs(
    rounds.make_block(rounds.make_round(ALGORITHM, selector), 3), vmap=True
  )
  starts = [
    rounds.init_state(ALGORITHM, jax.random.key(seed), N, selector)
    for seed in (5, 6)
  ]
  _, both = jax.jit(many)(
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), data
  )
  np.testing.assert_array_equal(both["rounds"].ids[0], ids[:3])


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"uniform", "cyclic"}))
def test_nobody_who_is_offline_is_chosen(name):
  online = np.array([True, False, True, True, False, True, False])
  _, history = run(parse(name, C, ROUNDS), timed(online))
  assert online[np.asarray(history["rounds"].ids)].all()
  few = np.array([False, True, False, False, False, True, False])
  state, history = run(parse(name, C, ROUNDS), timed(few), num_rounds=2)
  assert few[np.asarray(history["rounds"].ids)[:, :2]].sum() == 4
  assert np.asarray(history["rounds"].present).sum() == 4
  assert np.isfinite(jax.tree.leaves(state.server)[0]).all()


def test_cyclic_takes_turns():
  _, history = run(cyclic(C), tiny.data(), num_rounds=2 * N)
  np.testing.assert_array_equal(
    np.asarray(history["rounds"].ids).ravel(), np.arange(2 * N * C) % N
  )


def test_by_weight_prefers_large_clients():
  data = tiny.data()
  state = rounds.init_state(ALGORITHM, jax.random.key(0), N)
  keys = jax.random.split(jax.random.key(1), 5000)
  got = jax.vmap(lambda key: by_weight(1).choose(key, state, data))(keys)
  share = np.bincount(np.asarray(got)[:, 0], minlength=N) / 5000
  count = np.asarray(data.train.count)
  np.testing.assert_allclose(share, count / count.sum(), atol=0.03)


def _losses(state, data):
  """f64[N]: mean cross-entropy of each client's training rows, a loop."""
  first, second = (
    np.asarray(state.server.params[name], np.float64)
    for name in ("first", "second")
  )
  x, y = (np.asarray(part, np.float64) for part in data.examples)
  losses = []
  for k in range(N):
    rows = np.asarray(data.train.index[k])[: int(data.train.count[k])]
    each = []
    for row in rows:
      z = np.maximum(x[row] @ first, 0) @ second
      each.append(np.log(np.exp(z - z.max()).sum()) + z.max() - z[int(y[row])])
    losses.append(np.mean(each))
  return np.array(losses)


def test_power_of_choice_takes_the_largest_losses():
  data = tiny.data()
  state = rounds.init_state(ALGORITHM, jax.random.key(2), N)
  want = _losses(state, data)
  loss = fresh_loss(ALGORITHM, tiny.mlp(), batch_size=3)
  got = loss(state, data, jnp.arange(N))
  np.testing.assert_allclose(got, want, rtol=1e-4)
  selector = power_of_choice(C, N, loss=loss)
  ids = selector.choose(jax.random.key(0), state, data)
  np.testing.assert_array_equal(ids, np.argsort(-want)[:C])
  # of the first batch alone
  part = fresh_loss(ALGORITHM, tiny.mlp(), batch_size=3, max_batches=1)
  short = data._replace(
    train=data.train._replace(count=jnp.minimum(data.train.count, 3))
  )
  np.testing.assert_allclose(
    part(state, data, jnp.arange(N)), _losses(state, short), rtol=1e-4
  )


def test_power_of_choice_with_what_was_reported():
  """Clients never seen first, then by the last loss; C candidates: a draw."""
  memory = Memory(
    jnp.asarray([5.0, 1.0, 9.0, 2.0, 0.0, 3.0, 0.0]),
    jnp.zeros(N, jnp.int32),
    jnp.asarray([1, 1, 1, 1, 0, 1, 0]),
  )
  state = rounds.init_state(ALGORITHM, jax.random.key(0), N)._replace(
    selector=memory
  )
  ids = power_of_choice(4, N).choose(jax.random.key(0), state, tiny.data())
  assert set(np.asarray(ids)) == {4, 6, 2, 0}
  with pytest.raises(UserError, match="at least 4 candidates"):
    power_of_choice(4, 3)
  more = power_of_choice(4, 100).choose(jax.random.key(0), state, tiny.data())
  assert set(np.asarray(more)) == {4, 6, 2, 0}


def test_questions_are_counted():
  selector = power_of_choice(C, 5, loss=fresh_loss(ALGORITHM, tiny.mlp()))
  _, history = run(selector, tiny.data(), num_rounds=2)
  seen = history["rounds"]
  np.testing.assert_array_equal(
    seen.probe_bytes, 5 * np.asarray(seen.down_bytes)[:, 0]
  )
  selector = hetero_select(C, 2, loss=fresh_loss(ALGORITHM, tiny.mlp()))
  _, history = run(selector, tiny.data(), num_rounds=2)
  np.testing.assert_array_equal(
    history["rounds"].probe_bytes,
    N * np.asarray(history["rounds"].down_bytes)[:, 0],
  )
  _, history = run(power_of_choice(C, 5), tiny.data(), num_rounds=2)
  assert history["rounds"].probe_bytes is None


def _oort_state(rng):
  count = rng.integers(0, 4, N)
  count[0] = 0
  return guided.OortState(
    Memory(
      jnp.asarray(rng.uniform(0.1, 3, N), jnp.float32),
      jnp.asarray(np.where(count, rng.integers(0, 30, N), -1), jnp.int32),
      jnp.asarray(count, jnp.int32),
    ),
    jnp.asarray(rng.uniform(1, 60, N), jnp.float32),
    jnp.float32(30),
    jnp.float32(0),
    jnp.float32(0),
  )


def test_oort_score_is_the_rule():
  rng, size = np.random.default_rng(0), np.arange(1.0, N + 1)
  for _ in range(20):
    mine = _oort_state(rng)
    got = guided.score(
      mine, jnp.asarray(size, jnp.float32), jnp.int32(31), 0.9, 2.0
    )
    loss, last, count = (np.asarray(leaf, np.float64) for leaf in mine.memory)
    seen = [k for k in range(N) if count[k]]
    utility = {k: loss[k] * size[k] for k in seen}
    ordered = sorted(utility.values())
    cut = ordered[min(int(len(seen) * 0.9), len(seen) - 1)]
    clipped = {k: min(u, cut) for k, u in utility.items()}
    low, high = min(clipped.values()), max(clipped.values())
    waits = sorted(float(mine.duration[k]) for k in seen)
    preferred = waits[int(len(seen) * 0.3)]
    for k in seen:
      want = (clipped[k] - low) / (high - low) if high > low else 0.0
      want += np.sqrt(0.1 * np.log(31) / (last[k] + 1))
      if float(mine.duration[k]) > preferred:
        want *= (preferred / float(mine.duration[k])) ** 2
      np.testing.assert_allclose(got[k], want, rtol=1e-4, atol=1e-6)


def test_oort_explores_as_it_says():
  """Round 0: 0.9 x 0.98 of 5 are 4 new ones, and nobody else is known."""
  data = timed()
  selector = guided.oort(5)
  state = rounds.init_state(ALGORITHM, jax.random.key(0), N, selector)
  known = jnp.asarray([1, 1, 1, 1, 0, 0, 0])
  memory = state.selector.memory._replace(
    count=known, last=known - 1, loss=jnp.ones(N)
  )
  late = state._replace(
    selector=state.selector._replace(memory=memory), round=jnp.int32(60)
  )
  for seed in range(20):
    key = jax.random.key(seed)
    assert len(set(np.asarray(selector.choose(key, state, data)))) == 5
    ids = np.asarray(selector.choose(key, late, data))
    # epsilon is at its floor: 0.3 x 5 = 1 new one, 4 known ones
    assert (ids >= 4).sum() == 1


def test_oort_pacer():
  base = _oort_state(np.random.default_rng(1))
  for before, window, want in [
    (100.0, 105.0, 35.0),  # flat: wait longer
    (100.0, 150.0, 30.0),
    (100.0, 700.0, 25.0),  # sharp: be stricter
  ]:
    mine = base._replace(before=jnp.float32(before), window=jnp.float32(window))
    moved = guided._pace(mine, 5.0, first=jnp.bool_(False))
    assert moved.quantile == want
    assert moved.before == window and moved.window == 0
    assert guided._pace(mine, 5.0, first=jnp.bool_(True)).quantile == 30


def test_hetero_score_is_the_rule():
  rng = np.random.default_rng(3)
  for _ in range(10):
    count = rng.integers(0, 4, N)
    update = rng.normal(size=(N, 16)) * (count > 0)[:, None]
    mine = hetero.HeteroSelectState(
      Memory(
        jnp.zeros(N),
        jnp.asarray(np.where(count, rng.integers(0, 20, N), -1), jnp.int32),
        jnp.asarray(count, jnp.int32),
      ),
      jnp.asarray(rng.normal(size=N), jnp.float32),
      jnp.asarray(update, jnp.float32),
      jnp.asarray(rng.normal(size=16), jnp.float32),
    )
    utility = rng.uniform(size=N)
    weights = hetero.Weights(0.3, 0.2, 0.25, 0.1, 0.15)
    got = hetero.score(
      mine, jnp.asarray(utility, jnp.float32), jnp.int32(20), weights
    )
    g = np.asarray(mine.aggregate, np.float64)
    wait = 0.5 * np.log(1 + 20 - np.asarray(mine.memory.last))
    drop = np.asarray(mine.drop, np.float64)
    known = [drop[k] for k in range(N) if count[k]]
    total = []
    for k in range(N):
      distance, fall = 0.5, 0.0
      if count[k]:
        cosine = update[k] @ g / np.linalg.norm(update[k]) / np.linalg.norm(g)
        distance = min(max(1 - cosine, 0), 1)
        if max(known) > min(known):
          fall = (drop[k] - min(known)) / (max(known) - min(known))
      total.append(
        utility[k]
        + 0.3 * distance
        + 0.2 * min(max(1 - count[k] / count.mean(), -1), 1)
        + 0.25 * (wait[k] - wait.min()) / (wait.max() - wait.min())
        + 0.1 * fall
        + 0.15 / (1 + update[k] @ update[k])
      )
    total = np.array(total)
    want = (total - total.min()) / (total.max() - total.min())
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_hetero_remembers_updates_and_counts():
  """The sketches are those of the real uploads; the average keeps 0.9."""
  selector = hetero_select(C, ROUNDS, sketch_size=4096)
  state, history = run(selector, tiny.data(), num_rounds=1)
  ids = np.asarray(history["rounds"].ids)[0]
  mine, before = (
    state.selector,
    rounds.init_state(ALGORITHM, jax.random.key(5), N),
  )
  np.testing.assert_array_equal(
    np.flatnonzero(np.asarray(mine.memory.count)), np.sort(ids)
  )
  change = jax.tree.map(
    lambda a, b: np.asarray(a - b, np.float64),
    state.server.params,
    before.server.params,
  )
  length = sum((leaf**2).sum() for leaf in jax.tree.leaves(change)) ** 0.5
  # 4096 places hold each leaf alone: the sketch is nearly an isometry
  np.testing.assert_allclose(
    np.linalg.norm(mine.aggregate), 0.1 * length, rtol=0.1
  )
  with pytest.raises(UserError, match="num_rounds"):
    hetero_select(C, 0)


@pytest.mark.parametrize(
  "spec, message",
  [
    ("ort", "oort"),
    ("oort:3", "oort without a value"),
    ("power_of_choice:x", "power_of_choice:NUMBER"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError, match=message):
    parse(spec, C, ROUNDS)
