"""pFedGate: each client's own gate chooses and scales blocks of the model.

Down: the global model, 32 d bits.  Up: its change in the blocks that were used
in at least one batch, 32 q_k d bits, and a bit a block which those are.  The
gate (about 2 d_X L numbers) and its optimiser's work stay at the client.  Once:
the 64-bit seed of the gates' common start.

Departures: sparse uploads need an optimiser that moves no block of zero
gradient, plain SGD; with momentum or weight decay the moves of unused blocks
stay at the client.  The released code differs from the paper, which is followed
here: it averages full models plainly (`counted=False`), has one path for M and
G (`gating(separate=False)`), orders its knapsack by rounded importance alone
(`gating(order="rounded")`) within two capacities, cuts the gradient to G of
unused blocks, and clips the logits of every model at 0.  A client with a tensor
of fewer than B parameters keeps one of them always.

A client that never trained has the gate that all start from.  The global model
is not meant to be used without a gate: judge by `client_accuracy`.

References:
  Chen et al.: Efficient Personalized Federated Learning via Sparse
  Model-Adaptation, ICML 2023, arXiv:2305.02776, Algorithm 1 and appendix A.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _memory
from fedjax_het.algorithms._gate import Gating
from fedjax_het.algorithms._kept_values import (
  everybody_mean,
  holders_mean,
  kept_values,
)
from fedjax_het.core import local, wire
from fedjax_het.core.cohort import client_data
from fedjax_het.core.errors import UserError
from fedjax_het.core.rounds import TrainState
from fedjax_het.core.types import (
  Algorithm,
  Array,
  FederatedData,
  Model,
  Params,
  PyTree,
  Upload,
)


class PFedGateState(NamedTuple):
  """params: the global model theta;  gate: phi that all clients start from."""

  params: Params
  gate: PyTree


class Gated(NamedTuple):
  """theta and a client's phi: what a client has before it adapts."""

  params: Params
  gate: PyTree


def pfed_gate(
  model: Model,
  gating: Gating,
  *,
  optimizer: optax.GradientTransformation,
  gate_optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  counted: bool = True,
) -> Algorithm:
  """Trains the shared theta and the private phi_k on loss(theta * M'_k(x)).

  Both descend by one backward pass a batch, M' = M(x) I(x) averaged over the
  batch, I the knapsack's choice by G(x) with the gradient straight through.

  In `core.evaluate` a client is judged on its test split with *one* network,
  theta * M' of the mean scores over its training inputs: nothing about test
  examples is used but themselves (client level).  `gate_judge` gives the two
  other readings.

  Args:
    model: the network.
    gating: blocks, density and gate, from `gating`.
    optimizer: of theta (the paper's eta_g), made afresh every round.
    gate_optimizer: of phi (eta), made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.
    counted: averages each block over the clients that used it, weighted by
      examples; False: over all, with a change of 0 from the others.

  Returns:
    An `Algorithm`; metrics: loss, density (mean share of the parameters used
    in a batch), sent (q_k, share that travels up).
  """
  cross_entropy = local.cross_entropy(model)
  weights = jnp.asarray(gating.blocks.weights, jnp.float32)
  # A count of the batches in which each block was used rides along as a
  # parameter that "descends" by -1 a step.
  transform = optax.partition(
    {"theta": optimizer, "phi": gate_optimizer, "count": optax.sgd(-1.0)},
    {"theta": "theta", "phi": "phi", "count": "count"},
  )

  def gradient(tree, batch, key):
    def loss(trained):
      theta, phi = trained
      scores = gating.of_batch(phi, batch.x, batch.mask)
      factors, used = gating.factors(scores)
      return cross_entropy(gating.apply(theta, factors), batch, key), used

    (value, used), (d_theta, d_phi) = jax.value_and_grad(loss, has_aux=True)(
      (tree["theta"], tree["phi"])
    )
    count = used.astype(jnp.float32)
    return value, {"theta": d_theta, "phi": d_phi, "count": count}

  def client(message, kept, data, key):
    seed, theta = message
    start = {
      "theta": theta,
      "phi": _memory.recall(kept, seed.tree),
      "count": jnp.zeros(len(weights)),
    }
    result = local.follow(
      gradient,
      start,
      data,
      key,
      optimizer=transform,
      batch_size=batch_size,
      epochs=epochs,
    )
    count, total = result.params["count"], weights.sum()
    used = count > 0
    steps = jnp.maximum(jnp.max(count), 1)  # first blocks are in every batch
    return Upload(
      kept_values(
        optax.tree.sub(result.params["theta"], theta),
        gating.blocks.expand(used),
        used,
      ),
      data.count.astype(jnp.float32),
      _memory.remember(kept, result.params["phi"], data),
      {
        "loss": result.loss,
        "density": jnp.sum(count * weights) / (steps * total),
        "sent": jnp.sum(used.astype(jnp.float32) * weights) / total,
      },
    )

  def init(key):
    params_key, gate_key = jax.random.split(key)
    return PFedGateState(model.init(params_key), gating.init(gate_key))

  def adapt(gated, data, key):
    del key
    scores, _ = gating.of_client(gated.gate, data)
    return gating.apply(gated.params, gating.factors(scores)[0])

  return Algorithm(
    init=init,
    downlink=lambda state, client_id: (
      wire.Known(state.gate, setup_bytes=8),
      state.params,
    ),
    client=client,
    reducer=holders_mean() if counted else everybody_mean(),
    server=lambda state, change: state._replace(
      params=optax.tree.add(state.params, change)
    ),
    global_params=lambda state: state.params,
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
    init_client=lambda key: _memory.nothing(jax.eval_shape(gating.init, key)),
    predict=lambda state, kept, client_id: Gated(
      state.params, _memory.recall(kept, state.gate)
    ),
    adapt=adapt,
  )


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
