"""Who is online when: bool[T, N], the slots of a cycle that repeats.

`devices._replace(online=..., slot_seconds=...)`, or `attach`, puts such a trace
into a fleet.  A measured trace is an array like any other.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Devices


def bernoulli(
  num_clients: int, share: float, *, slots: int = 1000, seed: int = 0
) -> np.ndarray:
  """Each client is online in each slot with probability `share`, by itself."""
  _check_share(share)
  rng = np.random.default_rng(seed)
  return rng.random((slots, num_clients)) < share


def diurnal(
  num_clients: int, share: float, *, slots: int = 24, seed: int = 0
) -> np.ndarray:
  """Each client is online in one stretch of every day, e.g. while it charges.

  Args:
    num_clients: N.
    share: of the day that a client is online, rounded to whole slots, at least
      one.
    slots: T, of a day.
    seed: of each client's first slot, uniform over the day.
  """
  _check_share(share)
  rng = np.random.default_rng(seed)
  start = rng.integers(0, slots, num_clients)
  hour = (np.arange(slots)[:, None] - start) % slots
  return hour < max(round(share * slots), 1)


def markov(
  num_clients: int,
  share: float,
  *,
  mean_on: float = 6.0,
  slots: int = 1000,
  seed: int = 0,
) -> np.ndarray:
  """Two-state chains: stays of geometric length, on average `mean_on` slots.

  Args:
    num_clients: N.
    share: of the time that a client is online in the long run, below 1.
    mean_on: average length of a stay online, in slots, at least 1.
    slots: T.
    seed: of the chains, which start in their stationary distribution.
  """
  _check_share(share)
  leave = 1 / mean_on
  arrive = leave * share / max(1 - share, 1e-12)
  if mean_on < 1 or arrive > 1:
    raise UserError(
      f"no chain is online {share:g} of the time with stays of {mean_on:g} "
      f"slots: give mean_on of at least {max(1, share / (1 - share)):.3g}"
      if share < 1
      else "markov takes a share below 1: use bernoulli with share 1"
    )
  rng = np.random.default_rng(seed)
  online = np.empty((slots, num_clients), bool)
  online[0] = rng.random(num_clients) < share
  for t in range(1, slots):
    coin = rng.random(num_clients)
    online[t] = np.where(online[t - 1], coin >= leave, coin < arrive)
  return online


MODELS: dict[str, Callable[..., np.ndarray]] = {
  "bernoulli": bernoulli,
  "diurnal": diurnal,
  "markov": markov,
}


def attach(
  devices: Devices, online: np.ndarray, slot_seconds: float = 3600.0
) -> Devices:
  """The same fleet, online as the trace says.

  Args:
    devices: the fleet of N clients.
    online: bool[T, N].
    slot_seconds: virtual seconds of a slot.

  Raises:
    UserError: a trace of another shape or type, a slot that is not positive, or
      a slot in which nobody is online.
  """
  online = np.asarray(online)
  clients = devices.memory.shape[0]
  if online.dtype != bool or online.ndim != 2 or online.shape[1] != clients:
    raise UserError(
      f"online must be bool [slots, {clients}], got {online.dtype} "
      f"{list(online.shape)}"
    )
  if not slot_seconds > 0:
    raise UserError(f"slot_seconds must be positive, got {slot_seconds}")
  empty = np.flatnonzero(~online.any(axis=1))
  if empty.size:
    raise UserError(
      f"nobody is online in slot {empty[0]}: raise the share of the time that "
      "clients are online"
    )
  return devices._replace(
    online=jnp.asarray(online), slot_seconds=jnp.float32(slot_seconds)
  )


def parse(spec: str, devices: Devices, seed: int = 0) -> Devices:
  """`attach` with the model that a string names: "always" or `NAME:SHARE`.

  Args:
    spec: "always", "bernoulli:0.5", "diurnal:0.3", "markov:0.5".
    devices: the fleet.
    seed: of the draws.

  Raises:
    UserError: an unknown name or a share that is no number in (0, 1].
  """
  if spec == "always":
    return devices
  name, _, share = spec.partition(":")
  if name not in MODELS:
    raise unknown("availability", name, ["always", *MODELS])
  try:
    number = float(share)
  except ValueError:
    raise UserError(
      f"availability {spec!r}: write {name}:SHARE, the share of the time that "
      "a client is online"
    ) from None
  clients = devices.memory.shape[0]
  return attach(devices, MODELS[name](clients, number, seed=seed))


def _check_share(share: float) -> None:
  if not 0 < share <= 1:
    raise UserError(f"the share of time online is in (0, 1], got {share}")
