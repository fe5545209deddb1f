"""Selection that looks at no loss: by weight, whoever is online, in turn."""

import jax.numpy as jnp

from fedjax_het.core.clock import online
from fedjax_het.core.rounds import Selector
from fedjax_het.selection._draw import gumbel_top
from fedjax_het.selection._uniform import check_cohort_size


def by_weight(cohort_size: int) -> Selector:
  """C clients that are online, drawn one by one in proportion to n_k.

  An algorithm that weights uploads by n_k again counts large clients twice; the
  scheme of Li et al. (FedProx, arXiv:1812.06127) draws by size and averages
  with equal weights.

  Args:
    cohort_size: C.
  """

  def choose(key, state, data):
    check_cohort_size(cohort_size, data.num_clients)
    size = jnp.log(data.train.count.astype(jnp.float32))
    return gumbel_top(key, size, cohort_size, online(data, state.seconds))

  return Selector(choose)


def available(cohort_size: int) -> Selector:
  """C of those who are online, each subset equally likely.

  Where fewer are online, the places left go to clients that do not answer;
  `uniform` never asks who is there.

  Args:
    cohort_size: C.
  """

  def choose(key, state, data):
    check_cohort_size(cohort_size, data.num_clients)
    return gumbel_top(
      key,
      jnp.zeros(data.num_clients),
      cohort_size,
      online(data, state.seconds),
    )

  return Selector(choose)


def cyclic(cohort_size: int) -> Selector:
  """Clients in turn: round t gets t C, ..., t C + C - 1 (mod N).

  Everybody takes part equally often; who is offline misses its turn.

  Args:
    cohort_size: C.
  """

  def choose(key, state, data):
    del key
    check_cohort_size(cohort_size, data.num_clients)
    # t C overflows int32 only where N and t are both large: reduce t first
    turns = data.num_clients
    first = (state.round % turns) * cohort_size
    return (first + jnp.arange(cohort_size)) % data.num_clients

  return Selector(choose)
