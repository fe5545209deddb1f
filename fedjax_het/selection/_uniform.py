"""Uniform client selection, without replacement."""

import jax.numpy as jnp

from fedjax_het.core import shuffle
from fedjax_het.core.errors import UserError
from fedjax_het.core.rounds import Select


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
    if not 0 < cohort_size <= clients:
      raise UserError(
        f"a cohort of {cohort_size} from {clients} clients: give --cohort_size "
        f"in 1 to {clients}"
      )
    if cohort_size == clients:
      return jnp.arange(clients)
    # C places of a permutation of N, without sorting N keys in every round
    return shuffle.permute(key, jnp.arange(cohort_size), clients)

  return select
