"""Two trainings in one round (Ditto, FedRep) under one budget of steps.

The first may use half of the budget, rounded up; the second what is then left.
"""

from typing import NamedTuple

from fedjax_het.core import local
from fedjax_het.core.types import Array, ClientData


class TwoTrainings(NamedTuple):
  """batch_size: B of both;  first, second: epochs of each."""

  batch_size: int
  first: int
  second: int

  def share(self, data: ClientData) -> tuple[ClientData, ClientData]:
    """The client's data with the budget of the first and of the second."""
    half = data.budget - data.budget // 2
    used = local.num_steps(
      data.count, half, batch_size=self.batch_size, epochs=self.first
    )
    return (
      data._replace(budget=half),
      data._replace(budget=data.budget - used),
    )

  def num_steps(self, count: Array, budget: Array) -> Array:
    """Steps of both together, i32[]: an `Algorithm.local_steps`."""
    first = local.num_steps(
      count,
      budget - budget // 2,
      batch_size=self.batch_size,
      epochs=self.first,
    )
    second = local.num_steps(
      count, budget - first, batch_size=self.batch_size, epochs=self.second
    )
    return first + second
