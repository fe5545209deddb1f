"""What trained gates do: two more evaluations of pFedGate, and densities.

`core.evaluate` judges a client at client level: one network for all its test
examples, gated by its training inputs.  Here are the two other readings, each
example alone and the paper's, in which test examples share a network; and how
much of each layer the networks at client level use.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_het.algorithms import _memory
from fedjax_het.algorithms._gate import Gating
from fedjax_het.core.cohort import client_data
from fedjax_het.core.errors import UserError
from fedjax_het.core.rounds import TrainState
from fedjax_het.core.types import Array, FederatedData, Model
from fedjax_het.masks import tree


def gate_judge(
  model: Model, gating: Gating, *, together: int
) -> Callable[[TrainState, FederatedData], Array]:
  """Clients' accuracies when the gate looks at test inputs.

  together = 1 (batch-1): each test example has a network of its own, from its
  own scores; the norms use statistics of the client's training inputs.  Nothing
  leaks between test examples.

  together > 1 (the paper's evaluation, with 128): so many test examples of the
  same client share a network; scores are averaged over them and the norms use
  their statistics.  Labels do not leak, but an example's answer depends on the
  others, all of the same client: accuracy is transductive and grows or falls
  with `together`.

  Args:
    model, gating: of `pfed_gate`.
    together: test examples that share a network.

  Returns:
    (state, data) -> f32[N], for `make_evaluate(judge=...)`.

  Raises:
    UserError: together < 1.
  """
  if together < 1:
    raise UserError(f"together {together}: give at least 1")

  def alone(theta, phi, statistics, x):
    """Logits [B, K], each row of a network of its own."""
    scores = gating.scores(phi, x, statistics)

    def one(args):
      score, x = args
      factors, _ = gating.factors(score)
      return model.apply(gating.apply(theta, factors), x[None])[0]

    return jax.lax.map(one, (scores, x))

  def shared(theta, phi, x, real):
    factors, _ = gating.factors(gating.of_batch(phi, x, real))
    return model.apply(gating.apply(theta, factors), x)

  def accuracy(state, data):
    theta, width = state.server.params, data.test.index.shape[1]
    size = width if together == 1 else min(together, width)

    def one(args):
      client, kept = args
      phi = _memory.recall(kept, state.server.gate)
      count = data.test.count[client]
      if together == 1:
        _, statistics = gating.of_client(phi, client_data(data, client))

      def hits(start):
        place = start + jnp.arange(size)
        row = data.test.index[client, jnp.minimum(place, width - 1)]
        x, y = data.examples.x[row], data.examples.y[row]
        real = place < count
        if together == 1:
          logits = alone(theta, phi, statistics, x)
        else:
          logits = shared(theta, phi, x, real.astype(jnp.float32))
        hit = (jnp.argmax(logits, axis=-1) == y) & real
        return jnp.sum(hit, dtype=jnp.float32)

      starts = jnp.arange(0, width, size)
      total = jnp.sum(jax.lax.map(hits, starts))
      return total / jnp.maximum(count, 1).astype(jnp.float32)

    return jax.lax.map(one, (jnp.arange(data.num_clients), state.clients))

  return accuracy


def gate_density(
  gating: Gating,
) -> Callable[[TrainState, FederatedData], dict[str, Array]]:
  """Share of each layer that the clients' networks use, at client level.

  Args:
    gating: of `pfed_gate`.

  Returns:
    (state, data) -> layer's name to f32[N], in [0, 1]; biases are not counted.
  """

  def density(state, data):
    def one(args):
      client, kept = args
      phi = _memory.recall(kept, state.server.gate)
      scores, _ = gating.of_client(phi, client_data(data, client))
      _, used = gating.factors(scores)
      return tree.layer_density(gating.blocks.expand(used))

    return jax.lax.map(one, (jnp.arange(data.num_clients), state.clients))

  return density
