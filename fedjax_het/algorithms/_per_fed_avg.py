"""Per-FedAvg: clients train the model that one gradient step makes good (MAML).

Down: the global model, 32 P bits.  Up: its change, 32 P bits.

Departures: the paper draws three batches a step (inner gradient, outer
gradient, Hessian).  Here the examples of a batch are dealt in turn to a support
half, which gives the inner gradient and the Hessian, and a query half; a batch
of a single example serves as both.  The Hessian-vector product is exact, by
differentiating through the inner step (the paper's HF variant takes finite
differences).  Means are weighted by example counts, as in the released code of
later work (the paper: evenly).

References:
  Fallah, Mokhtari and Ozdaglar: Personalized Federated Learning: A
  Meta-Learning Approach, NeurIPS 2020, arXiv:2002.07948, Algorithm 1.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, Model


def per_fed_avg(
  model: Model,
  *,
  inner_rate: Array | float,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  first_order: bool = False,
) -> Algorithm:
  """Clients descend on F_k(w) = f_k(w - inner_rate grad f_k(w)).

  A step follows (I - a H_S(w)) grad f_Q(w - a grad f_S(w)) with a the inner
  rate, S the support and Q the query half of a batch; `first_order` leaves the
  Hessian H_S out.  A client is evaluated after one full-batch gradient step of
  rate a on its own training data.  With a = 0 and batches of one example this
  is FedAvg.

  Args:
    model: the network.
    inner_rate: alpha, the rate of the one step of adaptation.
    optimizer: the clients' optimiser, whose rate is the paper's beta.
    batch_size: B, even: support and query together.
    epochs: E, local epochs per round.
    first_order: FO-MAML.

  Returns:
    An `Algorithm`; metrics: loss, after the inner step, on the query half.

  Raises:
    UserError: an odd batch size.
  """
  if batch_size % 2:
    raise UserError(
      f"batch_size {batch_size}: per_fed_avg takes an even one, half of a "
      "batch adapts and half judges"
    )
  cross_entropy = local.cross_entropy(model)

  def meta_loss(params, batch, key):
    support = local.Batch(*(leaf[0::2] for leaf in batch))
    query = local.Batch(*(leaf[1::2] for leaf in batch))
    # real examples come first: a query half is empty if there is only one
    some = jnp.any(query.mask > 0)
    query = jax.tree.map(lambda q, s: jnp.where(some, q, s), query, support)
    inner = jax.grad(cross_entropy)(params, support, key)
    if first_order:
      inner = jax.lax.stop_gradient(inner)
    adapted = optax.tree.add_scale(params, -inner_rate, inner)
    return cross_entropy(adapted, query, key)

  def adapt(params, data, key):
    gradient = local.mean_gradient(
      cross_entropy, params, data, key, batch_size=batch_size
    )
    return optax.tree.add_scale(params, -inner_rate, gradient)

  return fed_avg(
    model,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    gradient=lambda received: jax.value_and_grad(meta_loss),
  )._replace(
    adapt=adapt,
    # two halves of a batch; a Hessian product is about two gradients more
    step_gradients=1.0 if first_order else 2.0,
  )
