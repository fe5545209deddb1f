"""The virtual clock: local steps and counted bytes as seconds and joules.

A client's time in a round is

  down bytes / down rate  +  gradients x seconds each  +  up bytes / up rate,

the middle term times its compute factor and the others times its network
factor of this round (log-normal, median 1).  A synchronous round lasts as long
as its slowest client, or until its deadline.  Nothing here depends on values
that are trained, so no clock ever changes what a client learns; being offline
or late does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.types import Array, Devices, FederatedData, Key


class Clock(NamedTuple):
  """The time of a round.

  now: f32[], virtual seconds since the run began.
  key: of the round's factors; client k draws from `fold_in(key, k)`.
  deadline: f32[], seconds after which an upload is no longer waited for.
  """

  now: Array
  key: Key
  deadline: Array


class Cost(NamedTuple):
  """seconds, joules: f32[], what a round takes of a client."""

  seconds: Array
  joules: Array


def online(data: FederatedData, now: Array) -> Array:
  """bool[N]: who can be reached at the time `now` f32[]; the cycle repeats."""
  if data.devices is None:
    return jnp.ones(data.num_clients, bool)
  slots = data.devices.online.shape[0]
  slot = (now // data.devices.slot_seconds).astype(jnp.int32) % slots
  return data.devices.online[slot]


def cost(
  devices: Devices,
  client: Array,
  key: Key,
  *,
  gradients: Array,
  up_bytes: Array,
  down_bytes: Array,
) -> Cost:
  """What a round takes of client number `client` i32[].

  Args:
    devices: of all clients.
    client: its number.
    key: of the round's factors.
    gradients: f32[], batch gradients that it computes.
    up_bytes, down_bytes: u32[], what it sends and receives.
  """
  noise = jax.random.normal(jax.random.fold_in(key, client), (2,))
  compute = gradients * devices.step_seconds[client]
  compute = compute * jnp.exp(devices.compute_jitter[client] * noise[0])
  radio = (
    up_bytes.astype(jnp.float32) / devices.up_rate[client]
    + down_bytes.astype(jnp.float32) / devices.down_rate[client]
  )
  radio = radio * jnp.exp(devices.network_jitter[client] * noise[1])
  joules = (
    compute * devices.compute_watts[client]
    + radio * devices.radio_watts[client]
  )
  return Cost(compute + radio, joules)
