"""How long a client takes, on the host: `core.clock` for single updates.

An update takes

  down bytes / down rate  +  steps x gradients a step x seconds each
  +  up bytes / up rate,

times its factors (log-normal, median 1, new for every update), from the first
moment at which its device is online.
"""

from collections.abc import Callable

import jax
import numpy as np

from fedjax_het.core import wire
from fedjax_het.core.cohort import client_data
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, FederatedData

#: (task id, client, steps, now) -> seconds until its update arrives
Duration = Callable[[int, int, int, float], float]

_BLOCK = 4096  # factors are drawn for this many tasks at once


def durations(
  algorithm: Algorithm, data: FederatedData, *, seed: int = 0
) -> Duration:
  """The time that each update takes, from devices and counted bytes.

  Args:
    algorithm: the method; its messages give the bytes.
    data: with devices.
    seed: of the factors; update number i draws the same whatever the schedule.

  Returns:
    A `Duration`.

  Raises:
    UserError: data without devices.
  """
  if data.devices is None:
    raise UserError(
      "time needs devices: give data._replace(devices=profiles.parse(...))"
    )
  up, down = _message_bytes(algorithm, data)
  devices = jax.tree.map(np.asarray, data.devices)
  most = _most_steps(algorithm, data)
  slow = devices.step_seconds.astype(np.float64) * algorithm.step_gradients
  radio = up / devices.up_rate.astype(np.float64)
  radio = radio + down / devices.down_rate.astype(np.float64)
  jitter = np.stack([devices.compute_jitter, devices.network_jitter], 1)
  waits = _waiting(devices.online, float(devices.slot_seconds))
  blocks: dict[int, np.ndarray] = {}

  def duration(task, client, steps, now):
    block, place = divmod(task, _BLOCK)
    if block not in blocks:
      rng = np.random.default_rng([seed, block])
      blocks[block] = rng.normal(size=(_BLOCK, 2))
    compute, network = np.exp(jitter[client] * blocks[block][place])
    steps = min(steps, int(most[client]))
    busy = steps * slow[client] * compute + radio[client] * network
    return waits(client, now) + float(busy)

  return duration


def _message_bytes(algorithm, data) -> tuple[int, int]:
  """Bytes up and down of one update, from the messages' shapes."""

  def both(key):
    server = algorithm.init(key)
    message = algorithm.downlink(server, np.int32(0))
    mine = client_data(data, np.int32(0))
    upload = algorithm.client(message, algorithm.init_client(key), mine, key)
    return message, upload.message

  down, up = jax.eval_shape(both, jax.random.key(0))
  return wire.nbytes(up), wire.nbytes(down)


def _most_steps(algorithm, data) -> np.ndarray:
  """i64[N]: the steps that each client does if nobody limits it."""
  steps = jax.vmap(algorithm.local_steps)(data.train.count, data.budget)
  return np.asarray(steps, np.int64)


def _waiting(
  online: np.ndarray, slot_seconds: float
) -> Callable[[int, float], float]:
  """(client, now) -> seconds until it is online; the cycle repeats."""
  slots = online.shape[0]
  if online.all():
    return lambda client, now: 0.0
  never = np.flatnonzero(~online.any(0))
  if never.size:
    raise UserError(
      f"{never.size} clients are never online (the first: {never[:5].tolist()})"
      ": an asynchronous server would wait for them for ever; leave them out"
    )

  def waits(client, now):
    slot = int(now // slot_seconds)
    for ahead in range(slots):
      if online[(slot + ahead) % slots, client]:
        break
    return max(0.0, (slot + ahead) * slot_seconds - now)

  return waits
