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
from fedjax_het.core.types import (
  Algorithm,
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
