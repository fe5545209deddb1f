"""Fleets: how fast each client's device computes and communicates.

A fleet is a spread of factors around one typical device.  A client with compute
factor c and network factor r (independent, both larger = slower) takes
c step_seconds for a batch gradient, sends at up_mbit / r, receives at
down_mbit / r, and has memory_mb / c of memory: slow devices are small ones.

Example:
  >>> fleet = parse("lognormal:1,step_seconds=0.2", num_clients=4)
  >>> fleet.step_seconds.shape
  (4,)
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Devices

Spread = Callable[[np.random.Generator, int], np.ndarray]

#: Factors are kept above this: no device is infinitely fast.
FLOOR = 0.1


def constant() -> Spread:
  """Everybody alike: factor 1."""
  return lambda rng, size: np.ones(size)


def uniform(half_width: float = 0.5) -> Spread:
  """Factors U[1 - half_width, 1 + half_width]."""
  _check("half_width", half_width, 0, 1)
  return lambda rng, size: rng.uniform(1 - half_width, 1 + half_width, size)


def normal(std: float = 0.3) -> Spread:
  """Factors N(1, std), the normal fleet of FedCompass (arXiv:2309.14675)."""
  _check("std", std, 0, np.inf)
  return lambda rng, size: rng.normal(1, std, size)


def exponential() -> Spread:
  """Factors Exp(1): many fast devices and a few very slow ones."""
  return lambda rng, size: rng.exponential(1, size)


def lognormal(sigma: float = 1.0) -> Spread:
  """Factors exp(N(0, sigma)): the median device is the typical one."""
  _check("sigma", sigma, 0, np.inf)
  return lambda rng, size: np.exp(rng.normal(0, sigma, size))


def tiers(*factors: float) -> Spread:
  """As many clients of each factor, dealt at random; default 1, 2, 4, 8."""
  factors = factors or (1.0, 2.0, 4.0, 8.0)
  for factor in factors:
    _check("every factor of tiers", factor, FLOOR, np.inf)

  def draw(rng, size):
    return rng.permutation(np.resize(factors, size))

  return draw


SPREADS: dict[str, Callable[..., Spread]] = {
  "constant": constant,
  "uniform": uniform,
  "normal": normal,
  "exponential": exponential,
  "lognormal": lognormal,
  "tiers": tiers,
}


def fleet(
  num_clients: int,
  spread: Spread,
  *,
  seed: int = 0,
  network: Spread | None = None,
  step_seconds: float = 0.1,
  up_mbit: float = 2.0,
  down_mbit: float = 10.0,
  memory_mb: float = 2048.0,
  compute_watts: float = 2.0,
  radio_watts: float = 1.0,
  jitter: float = 0.05,
) -> Devices:
  """Draws a fleet that is always online.

  The defaults are round numbers of a mobile device: they scale every time alike
  and cancel in a ratio of two times.

  Args:
    num_clients: N.
    spread: of the compute factors.
    seed: of the draws.
    network: spread of the network factors; default: as `spread`, drawn anew.
    step_seconds: for one batch gradient on the typical device.
    up_mbit, down_mbit: megabits a second of its link.
    memory_mb: megabytes that training may take on it.
    compute_watts, radio_watts: of every device.
    jitter: standard deviation of the log of the factors of a single round.

  Returns:
    `Devices`; put them into a data set by `data._replace(devices=...)`.

  Raises:
    UserError: a figure that is not positive (jitter: negative).
  """
  for name, value in {
    "step_seconds": step_seconds,
    "up_mbit": up_mbit,
    "down_mbit": down_mbit,
    "memory_mb": memory_mb,
  }.items():
    _check(name, value, 1e-12, np.inf)
  for name, value in {
    "compute_watts": compute_watts,
    "radio_watts": radio_watts,
    "jitter": jitter,
  }.items():
    _check(name, value, 0, np.inf)
  if num_clients < 1:
    raise UserError(f"num_clients must be at least 1, got {num_clients}")
  rng = np.random.default_rng(seed)
  slow = np.maximum(spread(rng, num_clients), FLOOR)
  far = np.maximum((network or spread)(rng, num_clients), FLOOR)

  def array(values):
    values = np.broadcast_to(np.asarray(values, np.float32), num_clients)
    return jnp.asarray(values)

  return Devices(
    step_seconds=array(step_seconds * slow),
    up_rate=array(up_mbit * 125_000 / far),
    down_rate=array(down_mbit * 125_000 / far),
    memory=array(memory_mb * 1e6 / slow),
    compute_watts=array(compute_watts),
    radio_watts=array(radio_watts),
    compute_jitter=array(jitter),
    network_jitter=array(jitter),
    online=jnp.ones((1, num_clients), bool),
    slot_seconds=jnp.float32(3600),
  )


def parse(spec: str, num_clients: int, seed: int = 0) -> Devices:
  """The fleet that a string names: `NAME[:VALUE[/VALUE...]][,OPTION=VALUE]`.

  Args:
    spec: e.g. "constant", "lognormal:1", "tiers:1/2/4", "exponential",
      "uniform:0.67,step_seconds=0.3,up_mbit=3"; the values are those of the
      spread (`SPREADS`), the options those of `fleet`.
    num_clients: N.
    seed: of the draws.

  Raises:
    UserError: an unknown name or option, or a value out of range.
  """
  head, *options = spec.split(",")
  name, _, values = head.partition(":")
  if name not in SPREADS:
    raise unknown("fleet", name, SPREADS)
  numbers = [_number(spec, text) for text in values.split("/") if text]
  try:
    spread = SPREADS[name](*numbers)
  except TypeError:
    raise UserError(
      f"fleet {spec!r}: {name} does not take {len(numbers)} values"
    ) from None
  chosen = {}
  for option in options:
    key, equals, text = option.strip().partition("=")
    if not equals:
      raise UserError(f"fleet {spec!r}: {option!r} is not OPTION=VALUE")
    if key not in _OPTIONS:
      raise unknown("option of a fleet", key, _OPTIONS)
    chosen[key] = _number(spec, text)
  return fleet(num_clients, spread, seed=seed, **chosen)


def capable(devices: Devices, needed_bytes: float) -> Devices:
  """The same fleet in which devices that are too small are never online.

  Args:
    devices: the fleet.
    needed_bytes: what training takes, e.g. from `memory.training_bytes`.

  Raises:
    UserError: nobody has as much memory.
  """
  fits = devices.memory >= needed_bytes
  if not bool(fits.any()):
    raise UserError(
      f"training needs {needed_bytes / 1e6:.3g} MB and the largest of the "
      f"{fits.size} devices has {float(devices.memory.max()) / 1e6:.3g} MB: "
      "take a smaller model or batch, or a fleet with more memory_mb"
    )
  return devices._replace(online=devices.online & fits[None])


_OPTIONS: Sequence[str] = (
  "step_seconds",
  "up_mbit",
  "down_mbit",
  "memory_mb",
  "compute_watts",
  "radio_watts",
  "jitter",
)


def _number(spec: str, text: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise UserError(f"fleet {spec!r}: {text!r} is not a number") from None


def _check(name: str, value: float, low: float, high: float) -> None:
  if not low <= value <= high or not np.isfinite(value):
    raise UserError(f"{name} must be from {low:g} to {high:g}, got {value}")
