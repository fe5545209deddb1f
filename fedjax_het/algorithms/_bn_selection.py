"""FedTiny's adaptive batch-normalisation selection: which first mask to take.

Once, before the rounds: the server makes C masks of one size that divide it
otherwise among the layers (`masks.density_pool`).  Devices run the candidates
forward only; their statistics of batch normalisation are put together, and each
candidate is judged with them by its loss on the devices' data.

Down: C masks, the weights that any of them keeps and the dense parameters; then
C sets of global statistics.  Up: C sets of statistics, then C losses and the
number of examples.  Floats and counts are 32 bits; a mask is coded as in
`masks.sparse_wire`.

Departures (the paper's full text was not available): how candidates are drawn,
and that statistics combine by the total variance, which is exact in the first
normalising layer; a device looks at all its training examples at once.

References:
  Huang et al.: Distributed Pruning Towards Tiny Neural Networks in Federated
  Learning, ICDCS 2023, arXiv:2212.01977.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.local import Batch, cross_entropy
from fedjax_het.core.types import Array, FederatedData, Params, PyTree
from fedjax_het.masks import tree
from fedjax_het.masks.sparse_wire import MaskNews, layer_sizes
from fedjax_het.models.batch_norm import BatchNormModel, with_statistics

Statistics = list[dict[str, Array]]


class Selection(NamedTuple):
  """best: i32[], the candidate of least loss;  loss: f32[C], of each.

  statistics: per normalising layer {"mean", "var"} f32[C, channels], global.
  up_bytes, down_bytes: i32[], of each device.
  """

  best: Array
  loss: Array
  statistics: Statistics
  up_bytes: Array
  down_bytes: Array


def bn_selection(
  model: BatchNormModel,
  params: Params,
  masks: PyTree,
  data: FederatedData,
  clients: Array,
) -> Selection:
  """Judges candidate masks on the devices' own data.

    mean = sum_k w_k mean_k,  var = sum_k w_k (var_k + (mean_k - mean)^2),

  w_k = n_k / sum n; the loss of a candidate is sum_k w_k loss_k.

  Args:
    model: the network.
    params: dense, e.g. pretrained on public data.
    masks: C mask trees, stacked [C, ...].
    data: the federated data set.
    clients: i32[K], the devices that take part.

  Returns:
    A `Selection`.
  """
  share = data.train.count[clients].astype(jnp.float32)
  share = share / jnp.sum(share)
  loss = cross_entropy(model.evaluation)

  def judge(mask):
    pruned = tree.apply_mask(params, mask)

    def of_client(client):
      batch = _all_of(data, client)
      return model.collect(pruned, batch.x, batch.mask)

    found = total_statistics(jax.lax.map(of_client, clients), share)
    ready = with_statistics(pruned, found)
    losses = jax.lax.map(
      lambda client: loss(ready, _all_of(data, client), jax.random.key(0)),
      clients,
    )
    return share @ losses, found

  losses, found = jax.lax.map(judge, masks)
  up, down = _nbytes(params, masks, found)
  best = jnp.argmin(losses).astype(jnp.int32)
  return Selection(best, losses, found, up, down)


def total_statistics(found: Statistics, share: Array) -> Statistics:
  """Joins the devices' statistics, leaves [K, channels], by shares f32[K]."""

  def one(layer):
    mean = share @ layer["mean"]
    gap = jnp.square(layer["mean"] - mean[None])
    return {"mean": mean, "var": share @ (layer["var"] + gap)}

  return [one(layer) for layer in found]


def _all_of(data: FederatedData, client: Array) -> Batch:
  index, count = data.train.index[client], data.train.count[client]
  real = jnp.arange(index.shape[0]) < count
  rows = jax.tree.map(lambda leaf: leaf[index], data.examples)
  return Batch(rows.x, rows.y, real.astype(jnp.float32))


def _nbytes(
  params: Params, masks: PyTree, found: Statistics
) -> tuple[Array, Array]:
  """(up, down) of one device, i32[] each."""
  flat = jax.vmap(tree.ravel)(masks)
  sizes = layer_sizes(params)
  coded = jax.vmap(
    lambda kept: MaskNews(kept, jnp.ones_like(kept), sizes).wire_nbytes()
  )(flat)
  dense = sum(leaf.size for leaf in jax.tree.leaves(params)) - sum(sizes)
  weights = jnp.sum(jnp.any(flat, axis=0), dtype=jnp.int32) + dense
  floats = sum(leaf.size for leaf in jax.tree.leaves(found))
  down = jnp.sum(coded) + 4 * (weights + floats)
  return jnp.int32(4 * (floats + flat.shape[0] + 1)), down.astype(jnp.int32)
