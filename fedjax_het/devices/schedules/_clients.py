"""Whom to send to next: draws among the clients that are not busy."""

from collections.abc import Sequence

import numpy as np

from fedjax_het.core.errors import UserError


class Idle:
  """The clients that are not busy; drawing and returning take O(1)."""

  def __init__(self, num_clients: int, seed: int):
    self._clients = list(range(num_clients))
    self._rng = np.random.default_rng(seed)

  def draw(self) -> int:
    """Takes one client out at random."""
    place = int(self._rng.integers(len(self._clients)))
    self._clients[place], last = self._clients[-1], self._clients[place]
    self._clients.pop()
    return last

  def give_back(self, client: int) -> None:
    self._clients.append(client)


def check_weights(weights: Sequence[float]) -> np.ndarray:
  """f64[N]: positive weights that add up to 1.

  Raises:
    UserError: none, or not all positive.
  """
  weights = np.asarray(weights, np.float64)
  if weights.ndim != 1 or not weights.size or not (weights > 0).all():
    raise UserError(
      "weights: give one positive number a client, e.g. its example count; "
      f"got {weights.tolist()[:5]}"
    )
  return weights / weights.sum()


def check_in_flight(in_flight: int | None, num_clients: int) -> int:
  """How many clients train at a time; None is everybody.

  Raises:
    UserError: not between 1 and N.
  """
  if in_flight is None:
    return num_clients
  if not 1 <= in_flight <= num_clients:
    raise UserError(
      f"{in_flight} clients at a time: give 1 to {num_clients}, the clients "
      "there are"
    )
  return in_flight


def check_positive(**values: float) -> None:
  """Raises a `UserError` for a value that is not above 0."""
  for name, value in values.items():
    if not value > 0:
      raise UserError(f"{name} must be above 0, got {value}")
