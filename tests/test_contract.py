"""What every algorithm promises by being in REGISTRY."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_het.algorithms import REGISTRY, example
from fedjax_het.core import (
  cohort,
  evaluate,
  mesh,
  rounds,
  shuffle,
  sweep,
  wire,
)
from fedjax_het.selection import uniform
from fedjax_het.training.checkpoint import Checkpointer

# One method after the other, not one test after the other.
pytestmark = pytest.mark.parametrize("name", sorted(REGISTRY), scope="module")
COHORT = 5
TRACES = {}  # name -> how often `_jitted` was traced

# Compilation is nearly all of this file's time, so programs are shared:
# `_jitted` (one round on given ids) and `_block` (three scanned rounds); they
# are compiled without optimisation, and shuffles are short.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@pytest.fixture(scope="module", autouse=True)
def short_shuffles():
  patch = pytest.MonkeyPatch()
  patch.setattr(shuffle, "_ROUNDS", 4)
  yield
  patch.undo()


@functools.cache
def _algorithm(name):
  return example(name, tiny.mlp(), tiny.INPUT_SHAPE, tiny.CLIENTS)


def _round(name, select=None, **kwargs):
  return rounds.make_round(
    _algorithm(name), select or uniform(COHORT), **kwargs
  )


@functools.cache
def _jitted(name):
  """(state, data, ids i32[COHORT]) -> (state, cohort)."""

  def one_round(state, data, ids):
    TRACES[name] = TRACES.get(name, 0) + 1
    return _round(name, lambda key, data: ids)(state, data)

  return jit(one_round)


@functools.cache
def _block(name):
  """Three rounds, scanned, one client at a time, on one device."""
  return jit(rounds.make_block(_round(name), 3))


@functools.cache
def _start(name):
  return rounds.init_state(_algorithm(name), jax.random.key(7), tiny.CLIENTS)


@functools.cache
def _reference(name):
  return _block(name)(_start(name), tiny.data())


@pytest.fixture(scope="module", autouse=True)
def forget(name):
  """A method's programs go when its tests are done: they are gigabytes."""
  yield
  for cached in (_algorithm, _jitted, _block, _start, _reference):
    cached.cache_clear()
  TRACES.clear()
  jax.clear_caches()


def _values(state):
  return jax.tree.map(
    lambda leaf: (
      jax.random.key_data(leaf)
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    ),
    state,
  )


def _uncommitted(leaf):
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    return jax.random.wrap_key_data(_uncommitted(jax.random.key_data(leaf)))
  return jnp.asarray(np.asarray(leaf))


def _assert_close(got, want, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol),
    _values(got),
    _values(want),
  )


def _assert_equal(got, want):
  jax.tree.map(np.testing.assert_array_equal, _values(got), _values(want))


def test_it_learns(name):
  """More than chance on an easy problem, so that equalities mean something."""
  state = _start(name)
  for _ in range(20):
    state, _ = _block(name)(state, tiny.data())
  judge = jit(evaluate.make_evaluate(_algorithm(name), tiny.mlp()))
  seen = judge(state, tiny.data())
  assert seen[REGISTRY[name].judged_by] > 0.55  # chance is 1/3
  assert seen["client_accuracy"].shape == (tiny.CLIENTS,)


def test_scan_equals_a_python_loop(name):
  """And a round is traced once for a whole run, whoever takes part."""
  state, ids = _start(name), _reference(name)[1]["rounds"].ids
  for chosen in ids:
    state, _ = _jitted(name)(state, tiny.data(), chosen)
  _assert_close(state, _reference(name)[0])
  for seed in range(2):  # other data of the same shape
    state, _ = _jitted(name)(state, tiny.data(seed=seed), ids[0])
  assert TRACES[name] == 1


def test_eager_equals_jit(name):
  ids = jnp.arange(COHORT)
  state, _ = _round(name, lambda key, data: ids)(_start(name), tiny.data())
  _assert_close(state, _jitted(name)(_start(name), tiny.data(), ids)[0])


@pytest.mark.parametrize("chunk, devices", [(5, 1), (2, 8)])
def test_chunks_padding_and_devices_change_nothing(name, chunk, devices):
  """5 clients in chunks of 2 on 8 devices: most slots are padding."""
  where = mesh.client_mesh(jax.devices()[:devices]) if devices > 1 else None
  block = rounds.make_block(_round(name, chunk=chunk, mesh=where), 3)
  state, history = jit(block)(_start(name), tiny.data())
  _assert_close(state, _reference(name)[0])
  _assert_close(history, _reference(name)[1])


def test_cohort_order_changes_nothing(name):
  states = [
    _jitted(name)(_start(name), tiny.data(), jnp.asarray(order))[0]
    for order in ([4, 0, 6, 2, 1], [1, 2, 6, 4, 0])
  ]
  _assert_close(*states)


def test_resume_is_bitwise(name, tmp_path):
  ids = _reference(name)[1]["rounds"].ids
  state, _ = _jitted(name)(_start(name), tiny.data(), ids[0])
  with Checkpointer(tmp_path, {"algorithm": name}) as checkpoints:
    checkpoints.save(1, state, {})
  with Checkpointer(tmp_path, {"algorithm": name}) as checkpoints:
    step, resumed = checkpoints.restore(_start(name))
  assert step == 1
  resumed = jax.tree.map(_uncommitted, resumed)  # or it compiles anew
  for chosen in ids[1:]:
    state, _ = _jitted(name)(state, tiny.data(), chosen)
    resumed, _ = _jitted(name)(resumed, tiny.data(), chosen)
  _assert_equal(resumed, state)


def test_many_seeds_in_one_program(name):
  keys = jax.random.split(jax.random.key(1), 2)
  starts = [
    rounds.init_state(_algorithm(name), key, tiny.CLIENTS) for key in keys
  ]
  many = sweep.over_runs(rounds.make_block(_round(name), 3), vmap=True)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
  states, _ = jit(many)(stacked, tiny.data())
  for i, start in enumerate(starts):
    _assert_close(
      jax.tree.map(lambda leaf, i=i: leaf[i], states),
      _block(name)(start, tiny.data())[0],
      atol=1e-5,
    )


def test_bytes_counted_are_bytes_written(name):
  """The encoder writes real messages, both ways, and they decode to equals."""
  algorithm, state, data = _algorithm(name), _reference(name)[0], tiny.data()
  client_state = jax.tree.map(lambda leaf: leaf[3], state.clients)
  _, seen = _jitted(name)(state, data, jnp.asarray([3, 0, 1, 2, 4]))

  @jit
  def exchange(state, client_state, data):
    down = algorithm.downlink(state.server, jnp.int32(3))
    shard = cohort.client_data(data, jnp.int32(3))
    # the key that the engine gives this client in this round
    _, key = jax.random.split(jax.random.fold_in(state.key, state.round))
    up = algorithm.client(down, client_state, shard, jax.random.fold_in(key, 3))
    return down, up.message

  counted = seen.down_bytes[0], seen.up_bytes[0]
  for message, number in zip(
    exchange(state, client_state, data), counted, strict=True
  ):
    encoded = wire.encode(message)
    assert number == len(encoded)
    _assert_equal(wire.decode(encoded, message), message)


def test_a_client_that_diverges_is_dropped_and_reported(name):
  """The round is that of the others alone."""
  bad, ids = 4, [0, 2, 3, 5]
  state, seen = _jitted(name)(
    _start(name), tiny.poison(tiny.data(), bad), jnp.asarray([bad, *ids])
  )
  np.testing.assert_array_equal(seen.ok, [False, True, True, True, True])
  assert seen.weight[0] == 0
  for leaf in jax.tree.leaves(_values(state)):
    assert np.isfinite(np.asarray(leaf, np.float64)).all()
  without, _ = jit(_round(name, lambda key, data: jnp.asarray(ids)))(
    _start(name), tiny.data()
  )
  _assert_close(state.server, without.server)
  _assert_equal(
    jax.tree.map(lambda leaf: leaf[bad], state.clients),
    jax.tree.map(lambda leaf: leaf[bad], _start(name).clients),
  )


def test_a_round_in_which_everybody_is_dropped_changes_nothing(name):
  data = tiny.data()
  for client in range(tiny.CLIENTS):
    data = tiny.poison(data, client)
  state, seen = _jitted(name)(_start(name), data, jnp.arange(COHORT))
  assert not np.any(seen.ok)
  _assert_equal(state.server, _start(name).server)
  _assert_equal(state.clients, _start(name).clients)


def test_step_budgets_are_kept(name):
  budget = np.array([0, 1, 2, 3, 1, 0, 5])
  ids = jnp.asarray([0, 1, 2, 3, 6])
  _, seen = _jitted(name)(_start(name), tiny.data(budget=budget.tolist()), ids)
  assert (np.asarray(seen.steps) <= budget[np.asarray(ids)]).all()
  assert (np.asarray(seen.steps)[1:] > 0).all()
