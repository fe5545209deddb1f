"""How much memory training takes on a client, measured from its program."""

import jax
import jax.numpy as jnp

from fedjax_het.core.cohort import client_data
from fedjax_het.core.types import Algorithm, FederatedData


def training_bytes(algorithm: Algorithm, data: FederatedData) -> int:
  """Bytes that one client's round takes, as XLA plans it on this backend.

  That is what it receives, keeps and sends, its temporary buffers (activations,
  gradients, optimiser), and the examples of the largest client.  A phone's
  framework would plan otherwise; the figure is for comparing methods, models
  and batch sizes.

  Args:
    algorithm: the method.
    data: gives the shapes.
  """

  def one(message, client_state, data, key):
    return algorithm.client(
      message, client_state, client_data(data, jnp.int32(0)), key
    )

  key = jax.random.key(0)
  message = jax.eval_shape(
    lambda key: algorithm.downlink(algorithm.init(key), jnp.int32(0)), key
  )
  client_state = jax.eval_shape(algorithm.init_client, key)
  plan = (
    jax.jit(one).lower(message, client_state, data, key).compile()
  ).memory_analysis()
  example = data.examples.x.nbytes // data.examples.x.shape[0]
  received = sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves((message, client_state))
  )
  return (
    plan.temp_size_in_bytes
    + plan.output_size_in_bytes
    + received
    + int(data.train.count.max()) * example
  )
