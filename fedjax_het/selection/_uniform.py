"""Uniform client selection, without replacement."""

import jax.numpy as jnp

from fedjax_het.core import shuffle
from fedjax_het.core.errors import UserError
from fedjax_het.core.rounds import Select


def check_cohort_size(cohort_size: int, num_clients: int) -> None:
  """Refuses a cohort that cannot be drawn without replacement.

  Raises:
    UserError: C is not in 1 to N.
  """
  if not 0 < cohort_size <= num_clients:
    raise UserError(
      f"a cohort of {cohort_size} from {num_clients} clients: give "
      f"--cohort_size in 1 to {num_clients}"
    )


def uniform(cohort_size: int) -> Select:
  """C of the N clients, each subset equally likely (C = N: everybody).

  Args:
    cohort_size: C.

  Returns:
    (key, data) -> ids i32[C], distinct.

  Raises:
    UserError: when called with data of fewer than C clients.
  """

  def select(key, data):
    clients = data.num_clients
    check_cohort_size(cohort_size, clients)
    if cohort_size == clients:
      return jnp.arange(clients)
    # C places of a permutation of N, without sorting N keys in every round
    return shuffle.permute(key, jnp.arange(cohort_size), clients)

  return select
