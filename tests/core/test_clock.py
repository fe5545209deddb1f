"""Virtual time: what a round costs, who is late, who is offline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_het.algorithms import example
from fedjax_het.core import clock, mesh, rounds
from fedjax_het.core.errors import UserError
from fedjax_het.devices import profiles

IDS = [0, 2, 3, 5, 6]
KEY = jax.random.key(3)


def fleet(**changes):
  """Seven devices without jitter, each twice as slow as the one before."""
  devices = profiles.fleet(
    tiny.CLIENTS, profiles.constant(), jitter=0.0, compute_watts=3.0
  )
  slow = 2.0 ** np.arange(tiny.CLIENTS, dtype=np.float32)
  return devices._replace(
    step_seconds=jnp.asarray(0.1 * slow), up_rate=jnp.asarray(1e4 / slow)
  )._replace(**changes)


def algorithm():
  return example("fed_avg", tiny.mlp(), tiny.INPUT_SHAPE, tiny.CLIENTS)


def start():
  return rounds.init_state(algorithm(), KEY, tiny.CLIENTS)


def one_round(data, ids=IDS, state=None, **options):
  run = rounds.make_round(
    algorithm(), lambda key, data: jnp.asarray(ids), **options
  )
  return jax.jit(run)(state or start(), data)


def test_cost_is_the_formula():
  devices = fleet()
  got = [
    clock.cost(
      devices,
      jnp.int32(k),
      KEY,
      gradients=jnp.float32(7),
      up_bytes=jnp.uint32(5000),
      down_bytes=jnp.uint32(80_000),
    )
    for k in range(tiny.CLIENTS)
  ]
  for k, (seconds, joules) in enumerate(got):
    compute = 7 * 0.1 * 2**k
    radio = 5000 / (1e4 / 2**k) + 80_000 / 1.25e6
    np.testing.assert_allclose(seconds, compute + radio, rtol=1e-5)
    np.testing.assert_allclose(joules, 3 * compute + radio, rtol=1e-5)


def test_jitter_is_lognormal_with_median_one():
  devices = fleet(
    compute_jitter=jnp.full(tiny.CLIENTS, 0.5),
    network_jitter=jnp.full(tiny.CLIENTS, 0.5),
  )

  def seconds(key, gradients, up_bytes):
    return clock.cost(
      devices,
      jnp.int32(0),
      key,
      gradients=gradients,
      up_bytes=up_bytes,
      down_bytes=jnp.uint32(0),
    ).seconds

  keys = jax.random.split(KEY, 4000)
  for gradients, up_bytes, plain in [(10, 0, 1.0), (0, 10_000, 1.0)]:
    logs = np.log(
      jax.vmap(seconds, in_axes=(0, None, None))(
        keys, jnp.float32(gradients), jnp.uint32(up_bytes)
      )
      / plain
    )
    assert abs(logs.mean()) < 5 * 0.5 / 4000**0.5
    np.testing.assert_allclose(logs.std(), 0.5, rtol=0.06)


def test_a_round_lasts_as_long_as_its_slowest_client():
  data = tiny.data()._replace(devices=fleet())
  state, seen = one_round(data)
  np.testing.assert_allclose(state.seconds, np.max(seen.seconds))
  assert np.argmax(seen.seconds) == len(IDS) - 1
  for k, client in enumerate(IDS):
    up, down = int(seen.up_bytes[k]), int(seen.down_bytes[k])
    want = (
      0.1 * 2**client * int(seen.steps[k])
      + up / (1e4 / 2**client)
      + down / 1.25e6
    )
    np.testing.assert_allclose(seen.seconds[k], want, rtol=1e-5)
  again, _ = one_round(data, state=state)
  np.testing.assert_allclose(again.seconds, 2 * state.seconds, rtol=1e-6)


def test_devices_change_no_result():
  plain, _ = one_round(tiny.data())
  timed, _ = one_round(tiny.data()._replace(devices=fleet()))
  jax.tree.map(np.testing.assert_array_equal, plain.server, timed.server)
  assert plain.seconds == 0 and timed.seconds > 0


def test_the_late_are_left_out_and_the_round_ends_at_the_deadline():
  data = tiny.data()._replace(devices=fleet())
  _, free = one_round(data)
  deadline = float(np.sort(free.seconds)[2]) * 1.001
  state, seen = one_round(data, deadline=deadline)
  on_time = np.asarray(free.seconds) <= deadline
  assert on_time.sum() == 3
  np.testing.assert_array_equal(seen.ok, on_time)
  np.testing.assert_array_equal(seen.present, on_time)
  np.testing.assert_allclose(state.seconds, deadline, rtol=1e-6)
  without, _ = one_round(data, ids=np.array(IDS)[on_time])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state.server,
    without.server,
  )


def test_who_is_offline_neither_trains_nor_sends():
  online = np.ones((2, tiny.CLIENTS), bool)
  online[0, [2, 6]] = False
  devices = fleet(online=jnp.asarray(online), slot_seconds=jnp.float32(1e-3))
  data = tiny.data()._replace(devices=devices)
  state, seen = one_round(data)
  here = online[0, IDS]
  np.testing.assert_array_equal(seen.present, here)
  for values in (seen.steps, seen.up_bytes, seen.down_bytes, seen.seconds):
    np.testing.assert_array_equal(np.asarray(values) > 0, here)
  without, _ = one_round(data, ids=np.array(IDS)[here])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state.server,
    without.server,
  )
  # an odd number of slots later everybody is there
  now = jnp.float32(3.5e-3)
  np.testing.assert_array_equal(clock.online(data, now), online[1])


def test_a_round_that_reaches_nobody_waits_a_slot():
  devices = fleet(
    online=jnp.zeros((1, tiny.CLIENTS), bool), slot_seconds=jnp.float32(60)
  )
  state, seen = one_round(tiny.data()._replace(devices=devices))
  assert state.seconds == 60 and not np.any(seen.present)
  jax.tree.map(np.testing.assert_array_equal, state.server, start().server)


def test_chunks_and_devices_of_the_mesh_change_no_time():
  data = tiny.data()._replace(
    devices=profiles.parse("lognormal:1", tiny.CLIENTS)
  )
  want = one_round(data)
  for options in (
    {"chunk": 2},
    {"chunk": 2, "mesh": mesh.client_mesh(jax.devices()[:3])},
  ):
    state, seen = one_round(data, **options)
    np.testing.assert_allclose(state.seconds, want[0].seconds, rtol=1e-6)
    np.testing.assert_allclose(seen.joules, want[1].joules, rtol=1e-6)


def test_a_deadline_needs_devices():
  with pytest.raises(UserError, match="deadline of 3 s needs devices"):
    one_round(tiny.data(), deadline=3)
