"""What every algorithm promises by being in REGISTRY."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_het.algorithms import REGISTRY, example
from fedjax_het.core import cohort, evaluate, mesh, rounds, sweep, wire
from fedjax_het.selection import uniform
from fedjax_het.training.checkpoint import Checkpointer

pytestmark = pytest.mark.parametrize("name", sorted(REGISTRY))
COHORT = 5


@functools.cache
def _algorithm(name):
  return example(name, tiny.mlp(), tiny.INPUT_SHAPE)


def _everybody(key, data):
  del key
  return jnp.arange(data.num_clients)


def _round(name, select=None, **kwargs):
  return rounds.make_round(
    _algorithm(name), select or uniform(COHORT), **kwargs
  )


@functools.cache
def _start(name):
  return rounds.init_state(_algorithm(name), jax.random.key(7), tiny.CLIENTS)


@functools.cache
def _reference(name):
  """Three rounds, scanned, one client at a time, on one device."""
  block = rounds.make_block(_round(name), 3)
  return jax.jit(block)(_start(name), tiny.data())


def _values(state):
  return jax.tree.map(
    lambda leaf: (
      jax.random.key_data(leaf)
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else leaf
    ),
    state,
  )


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
  algorithm = _algorithm(name)
  block = rounds.make_block(
    _round(name, _everybody), 25, evaluate.make_evaluate(algorithm, tiny.mlp())
  )
  _, history = jax.jit(block)(_start(name), tiny.data())
  assert history["eval"]["accuracy"] > 0.55  # chance is 1/3
  assert history["eval"]["client_accuracy"].shape == (tiny.CLIENTS,)


def test_scan_equals_a_python_loop(name):
  state, run_round = _start(name), jax.jit(_round(name))
  for _ in range(3):
    state, _ = run_round(state, tiny.data())
  _assert_close(state, _reference(name)[0])


def test_eager_equals_jit(name):
  state, _ = _round(name)(_start(name), tiny.data())
  jitted, _ = jax.jit(_round(name))(_start(name), tiny.data())
  _assert_close(state, jitted)


def test_one_trace_for_a_whole_run(name):
  traces = []

  def select(key, data):
    traces.append(None)
    return uniform(COHORT)(key, data)

  block = jax.jit(rounds.make_block(_round(name, select), 2))
  state = _start(name)
  for seed in range(3):  # other data of the same shape, other states
    state, _ = block(state, tiny.data(seed=seed))
  assert len(traces) == 1


@pytest.mark.parametrize("chunk, devices", [(2, 1), (5, 1), (1, 2), (2, 8)])
def test_chunks_padding_and_devices_change_nothing(name, chunk, devices):
  """5 clients in chunks of 2 on 8 devices: most slots are padding."""
  where = mesh.client_mesh(jax.devices()[:devices]) if devices > 1 else None
  block = rounds.make_block(_round(name, chunk=chunk, mesh=where), 3)
  state, history = jax.jit(block)(_start(name), tiny.data())
  _assert_close(state, _reference(name)[0])
  _assert_close(history, _reference(name)[1])


def test_cohort_order_changes_nothing(name):
  orders = jnp.asarray([[4, 0, 6, 2, 1], [1, 2, 6, 4, 0]])
  states = [
    jax.jit(_round(name, lambda key, data, o=order: o))(
      _start(name), tiny.data()
    )[0]
    for order in orders
  ]
  _assert_close(*states)


def test_resume_is_bitwise(name, tmp_path):
  block = jax.jit(rounds.make_block(_round(name), 1))
  state, _ = block(_start(name), tiny.data())
  with Checkpointer(tmp_path, {"algorithm": name}) as checkpoints:
    checkpoints.save(1, state, {})
  with Checkpointer(tmp_path, {"algorithm": name}) as checkpoints:
    step, resumed = checkpoints.restore(_start(name))
  assert step == 1
  for _ in range(2):
    state, _ = block(state, tiny.data())
    resumed, _ = block(resumed, tiny.data())
  _assert_equal(resumed, state)


@pytest.mark.parametrize("vmap, devices", [(True, 1), (False, 1), (False, 2)])
def test_many_seeds_in_one_program(name, vmap, devices):
  keys = jax.random.split(jax.random.key(1), 2)
  init = functools.partial(
    rounds.init_state, _algorithm(name), num_clients=tiny.CLIENTS
  )
  block = rounds.make_block(_round(name), 2)
  many = sweep.over_runs(
    block,
    vmap=vmap,
    mesh=mesh.client_mesh(jax.devices()[:2]) if devices > 1 else None,
  )
  states, _ = jax.jit(many)(jax.vmap(init)(keys), tiny.data())
  for i, key in enumerate(keys):
    alone, _ = jax.jit(block)(init(key), tiny.data())
    _assert_close(
      jax.tree.map(lambda leaf, i=i: leaf[i], states), alone, atol=1e-5
    )


def test_bytes_counted_are_bytes_written(name):
  """The encoder writes real messages, both ways, and they decode to equals."""
  algorithm, state, data = _algorithm(name), _reference(name)[0], tiny.data()
  down = algorithm.downlink(state.server, jnp.int32(3))
  shard = cohort.client_data(data, jnp.int32(3))
  client_state = jax.tree.map(lambda leaf: leaf[3], state.clients)
  up = algorithm.client(down, client_state, shard, jax.random.key(0)).message
  seen = _reference(name)[1]["rounds"]
  for message, counted in ((down, seen.down_bytes), (up, seen.up_bytes)):
    encoded = wire.encode(message)
    np.testing.assert_array_equal(counted, len(encoded))
    _assert_equal(wire.decode(encoded, message), message)


def test_a_client_that_diverges_is_dropped_and_reported(name):
  bad, data = 4, tiny.data()
  state, seen = jax.jit(_round(name, _everybody))(
    _start(name), tiny.poison(data, bad)
  )
  np.testing.assert_array_equal(seen.ok, np.arange(tiny.CLIENTS) != bad)
  assert seen.weight[bad] == 0
  for leaf in jax.tree.leaves(_values(state)):
    assert np.isfinite(np.asarray(leaf, np.float64)).all()
  others = jnp.asarray([k for k in range(tiny.CLIENTS) if k != bad])
  without, _ = jax.jit(_round(name, lambda key, data: others))(
    _start(name), data
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
  state, seen = jax.jit(_round(name))(_start(name), data)
  assert not np.any(seen.ok)
  _assert_equal(state.server, _start(name).server)
  _assert_equal(state.clients, _start(name).clients)


def test_step_budgets_are_kept(name):
  budget = [0, 1, 2, 3, 1, 0, 5]
  run = jax.jit(_round(name, _everybody))
  _, seen = run(_start(name), tiny.data(budget=budget))
  assert (np.asarray(seen.steps) <= budget).all()
  assert (np.asarray(seen.steps)[1:5] > 0).all()
