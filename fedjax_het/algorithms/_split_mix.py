"""SplitMix: narrow base networks that clients of any budget can train and mix.

The hidden units of the full network are cut into M equal groups, each of them a
base network of 1 / M of the width, with nothing between them: about P / M^2
parameters a base, P / M in all.  A client trains as many whole bases as its
budget allows, each alone, and mixes as many as it wants to use.

Down and up: b_k bases, b_k = floor(r_k M), at least 1, 32 bits a parameter; and
32 bits down, the first base.  They are (k + t + i) mod M for client k in round
t, i < b_k, so every client meets every base (paper and code: drawn at random,
the first from a shuffled list).

Departures: a base starts from its block of the full network's initial weights,
those of cut inputs times sqrt(M), the variance for their fan-in.  The client's
bases train side by side on the same batches (separate steps, as their
parameters are disjoint, if the optimiser works on each coordinate alone);
released code: one after the other, each with an order of its own.  Networks
without norm layers (see `_chain`), so no switch between batch norms for
robustness, the paper's second half.  The simulation computes all M bases at
full width, M times the work of FedAvg; the virtual clock charges one pass.

References:
  Hong et al.: Efficient Split-Mix Federated Learning for On-Demand and In-Situ
  Customization, ICLR 2022, arXiv:2203.09747.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms._chain import Chain, chain_of
from fedjax_het.algorithms._hetero_fl import SubModelState, check_rates
from fedjax_het.algorithms._kept_values import holders_mean, kept_values
from fedjax_het.core import local, wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import (
  Algorithm,
  Array,
  Model,
  Params,
  PyTree,
  Upload,
)
from fedjax_het.masks import tree as mask_tree


def split_mix(
  model: Model,
  rates: Sequence[float],
  *,
  bases: int,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  by_examples: bool = False,
  layers: Sequence[str] | None = None,
) -> Algorithm:
  """Averages each base network over the clients that trained it.

  The global model is the mixture of all bases, the mean of their logits; a
  client is evaluated with the mixture of as many as it can train, from base 0.
  One base, rates of 1 and `by_examples` make it FedAvg.

  Args:
    model: the network at full width, see `_chain` for which are supported.
    rates: r in (0, 1]; client k has rates[k % len(rates)].
    bases: M, which must divide the units of every hidden layer.
    optimizer: the clients' optimiser, made afresh every round.
    batch_size: B.
    epochs: E, local epochs per round.
    by_examples: weights clients by their examples; else by heads.
    layers: names of the kernels in the order in which they are applied, where
      it is not that of their names.

  Returns:
    An `Algorithm`; metrics: loss, the mean of the client's bases.

  Raises:
    UserError: as `hetero_fl`, or M divides some layer's units not.
  """
  chain = chain_of(model, layers)
  check_rates(rates)
  parts = _Parts.of(chain, bases)
  # 0.29 x 100 is a little below 29 in floats
  budgets = [max(1, int(rate * bases + 1e-6)) for rate in rates]
  cross_entropy = local.cross_entropy(model)

  def budget_of(client_id):
    return jnp.asarray(budgets)[client_id % len(budgets)]

  def chosen_bases(first, budget):
    return (jnp.arange(bases) - first) % bases < budget

  def send(state, client_id):
    first = (client_id + state.round) % bases
    budget = budget_of(client_id)
    values = kept_values(state.params, parts.mask(chosen_bases(first, budget)))
    return wire.Known(budget, setup_bytes=0), first, values

  def client(message, state, data, key):
    del state
    known, first, received = message
    chosen = chosen_bases(first, known.tree).astype(jnp.float32)

    def gradient(params, batch, key):
      def total(params):
        each = jax.vmap(
          lambda base: cross_entropy(parts.network(params, base), batch, key)
        )(jnp.eye(bases, dtype=bool))
        loss = jnp.sum(each * chosen)
        return loss, loss / jnp.sum(chosen)

      # the sum: every base descends on a loss of its own
      (_, mean), grads = jax.value_and_grad(total, has_aux=True)(params)
      return mean, grads

    result = local.follow(
      gradient,
      received.values,
      data,
      key,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
    )
    change = optax.tree.sub(result.params, received.values)
    weight = data.count.astype(jnp.float32) if by_examples else jnp.float32(1)
    return Upload(
      kept_values(change, received.mask), weight, (), {"loss": result.loss}
    )

  def predict(state, kept, client_id):
    del kept
    first = jnp.arange(bases) < budget_of(client_id)
    return parts.network(state.params, first)

  return Algorithm(
    init=lambda key: SubModelState(parts.cut(model.init(key)), jnp.int32(0)),
    downlink=send,
    client=client,
    reducer=holders_mean(),
    server=lambda state, change: SubModelState(
      optax.tree.add(state.params, change), state.round + 1
    ),
    global_params=lambda state: parts.network(
      state.params, jnp.ones(bases, bool)
    ),
    local_steps=functools.partial(
      local.num_steps, batch_size=batch_size, epochs=epochs
    ),
    predict=predict,
  )


class _Parts(NamedTuple):
  """All bases in one tree: that of the network, but an output bias for each.

  bases: M.
  shapes: of the tree.
  rows, cols: for each leaf, the base of each entry of its last but one and of
    its last axis, None if they are every base's; a coordinate of two bases is
    nobody's.
  output: for each leaf "kernel" or "bias" of the last layer, "" for others.
  """

  bases: int
  shapes: PyTree
  rows: tuple[np.ndarray | None, ...]
  cols: tuple[np.ndarray | None, ...]
  output: tuple[str, ...]

  @classmethod
  def of(cls, chain: Chain, bases: int) -> "_Parts":
    hidden = chain.units[:-1]
    if bases < 1 or not hidden or any(units % bases for units in hidden):
      raise UserError(
        f"bases {bases}: choose one that divides the units of every hidden "
        f"layer, {list(hidden)}"
      )
    last, shapes, rows, cols, output = len(hidden), [], [], [], []
    groups = [np.repeat(np.arange(bases), n // bases) for n in hidden]
    leaves, treedef = jax.tree.flatten(chain.shapes)
    for leaf, layer in zip(leaves, chain.layer, strict=True):
      row = None
      kind = "bias" if len(leaf.shape) == 1 else "kernel"
      if kind == "kernel" and layer:
        row = np.tile(groups[layer - 1], leaf.shape[-2] // hidden[layer - 1])
      elif kind == "bias" and layer == last:
        row = np.arange(bases)
        leaf = jax.ShapeDtypeStruct((bases, *leaf.shape), leaf.dtype)
      shapes.append(leaf)
      rows.append(row)
      cols.append(groups[layer] if layer < last else None)
      output.append(kind if layer == last else "")
    tree = jax.tree.unflatten(treedef, shapes)
    return cls(bases, tree, tuple(rows), tuple(cols), tuple(output))

  def cut(self, params: Params) -> PyTree:
    """A network's initial weights as those of its bases."""
    leaves, treedef = jax.tree.flatten(params)
    for i, kind in enumerate(self.output):
      if kind == "bias":
        shape = self.bases, *leaves[i].shape
        leaves[i] = jnp.broadcast_to(leaves[i][None], shape)
      elif self.rows[i] is not None:
        leaves[i] = leaves[i] * self.bases**0.5
    everything = self.mask(jnp.ones(self.bases, bool))
    return mask_tree.apply_mask(jax.tree.unflatten(treedef, leaves), everything)

  def mask(self, chosen: Array) -> PyTree:
    """Where the chosen bases bool[M] are: a bool tree."""
    leaves, treedef = jax.tree.flatten(self.shapes)
    out = []
    for leaf, row, col in zip(leaves, self.rows, self.cols, strict=True):
      mask = jnp.ones((1,) * len(leaf.shape), bool)
      if row is not None:
        mask = mask & _axes(chosen[row], -2, leaf)
      if col is not None:
        mask = mask & _axes(chosen[col], -1, leaf)
      if row is not None and col is not None:
        mask = mask & (_axes(row, -2, leaf) == _axes(col, -1, leaf))
      out.append(jnp.broadcast_to(mask, leaf.shape))
    return jax.tree.unflatten(treedef, out)

  def network(self, params: PyTree, chosen: Array) -> Params:
    """The full network whose logits are the mean of the chosen bases'."""
    share = 1 / jnp.sum(chosen).astype(jnp.float32)
    leaves, treedef = jax.tree.flatten(
      mask_tree.apply_mask(params, self.mask(chosen))
    )
    for i, kind in enumerate(self.output):
      if kind == "bias":
        leaves[i] = jnp.sum(leaves[i], axis=0)
      leaves[i] = leaves[i] * share if kind else leaves[i]
    return jax.tree.unflatten(treedef, leaves)


def _axes(values: Array, axis: int, like: Array) -> Array:
  """A vector along one axis of `like`, of size 1 along the others."""
  shape = [1] * len(like.shape)
  shape[axis] = values.shape[0]
  return values.reshape(shape)
