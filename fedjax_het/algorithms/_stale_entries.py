"""Methods for clients that are always late."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms._entries import entry, plain
from fedjax_het.algorithms._gradient_inversion import Search
from fedjax_het.algorithms._stale import stale_fed_avg
from fedjax_het.algorithms._stale_corrections import first_order, polynomial
from fedjax_het.algorithms._stale_inversion import inverted_fed_avg


def _late(factory, federation, **options):
  clients = federation.num_clients
  return plain(
    factory,
    federation,
    delays=np.arange(clients) % 3,
    cohort_size=clients,
    **options,
  )


def _inverted(factory, federation):
  model, shape = federation.model, federation.input_shape
  logits = jax.eval_shape(
    lambda key: model.apply(model.init(key), jnp.zeros((1, *shape))),
    jax.random.key(0),
  )
  return factory(
    model,
    delays=np.arange(federation.num_clients) % 3,
    rate=0.1,
    batch_size=32,
    cohort_size=federation.num_clients,
    search=Search(
      shape,
      logits.shape[-1],
      box=(-3.0, 3.0),
      size=4,
      iterations=4,
      signed=False,
    ),
    epochs=3,
  )


STALE = {
  "stale_fed_avg": entry(
    stale_fed_avg,
    "late updates, weighted by (1 + tau)^-1/2",
    make=_late,
    correction=polynomial(0.5),
  ),
  "stale_fed_avg_dc": entry(
    stale_fed_avg,
    "late updates, corrected to first order",
    make=_late,
    correction=first_order(4.0),
  ),
  "inverted_fed_avg": entry(
    inverted_fed_avg,
    "late updates, redone from reconstructed data",
    make=_inverted,
  ),
}
