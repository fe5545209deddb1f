"""Power-of-Choice: the clients with the largest losses of a few candidates.

d candidates are drawn without replacement by their example counts, and the C
of them with the largest local losses train.

Which loss: the paper's pi_pow-d asks the candidates for their loss at the
current model, a download and a forward pass each (`loss=fresh_loss(...)`; the
downloads are counted, their time is not); pi_rpow-d takes the last loss that a
client reported and costs nothing (`loss=None`; clients never seen come first).

Reference:
  Cho, Wang, Joshi: Client Selection in Federated Learning: Convergence Analysis
  and Power-of-Choice Selection Strategies, 2020, arXiv:2010.01243.
"""

import jax
import jax.numpy as jnp

from fedjax_het.core.clock import online
from fedjax_het.core.errors import UserError
from fedjax_het.core.rounds import Selector
from fedjax_het.selection._draw import blank, gumbel_top, remember
from fedjax_het.selection._fresh_loss import FreshLoss
from fedjax_het.selection._uniform import check_cohort_size


def power_of_choice(
  cohort_size: int,
  candidates: int,
  *,
  loss: FreshLoss | None = None,
) -> Selector:
  """The C of d candidates with the largest losses.

  Args:
    cohort_size: C.
    candidates: d, from C (a draw by size) to N (always the largest losses);
      everybody if there are fewer.
    loss: see above.

  Raises:
    UserError: d below C.
  """
  if candidates < cohort_size:
    raise UserError(
      f"power_of_choice chooses {cohort_size} of {candidates} candidates: give "
      f"at least {cohort_size} candidates"
    )

  def choose(key, state, data):
    check_cohort_size(cohort_size, data.num_clients)
    reachable = online(data, state.seconds)
    drawn = gumbel_top(
      key,
      jnp.log(data.train.count.astype(jnp.float32)),
      min(candidates, data.num_clients),
      reachable,
    )
    if loss is None:
      memory = state.selector
      value = jnp.where(memory.count > 0, memory.loss, jnp.inf)[drawn]
    else:
      value = loss(state, data, drawn)
    value = jnp.where(reachable[drawn], value, -jnp.inf)
    # NaN (a diverged model) would come first of all: it comes last
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    return drawn[jax.lax.top_k(value, cohort_size)[1]]

  return Selector(
    choose, blank, remember, probes=0 if loss is None else candidates
  )
