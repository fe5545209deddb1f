"""pFedGate's gate: from inputs to the blocks of the model that are used.

x -> switchable norm -> linear, d_X to L -> batch norm -> sigmoid, in two paths
of their own: M (how much each of the L blocks is scaled) and G (how important
it is).  About 2 d_X L parameters, which stay at the client.

The two norms need statistics of a set of inputs.  Here those are a value, so
that it is visible whose they are: a training batch's own, a test batch's own
(the paper's evaluation, in which test examples see each other), or those of the
client's training data.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import _blocks
from fedjax_het.algorithms._blocks import Blocks
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Array, ClientData, Key, Model, Params, PyTree

_EPS = 1e-5


class Statistics(NamedTuple):
  """Means and variances over a set of inputs.

  mean, var: f32[C], of the inputs, per channel.
  logit_mean, logit_var: f32[paths, L], of what the linear maps give.
  """

  mean: Array
  var: Array
  logit_mean: Array
  logit_var: Array


class Gating(NamedTuple):
  """What a gate is made of; the same for all clients.

  blocks: of the model;  capacity: most parameters that a client uses.
  order: of the knapsack;  paths: 2, or 1 if M and G share one.
  pixels, channels: of an input;  d_X is their product.
  """

  blocks: Blocks
  capacity: int
  order: str
  paths: int
  pixels: int
  channels: int

  @property
  def num_params(self) -> int:
    """d, parameters of the model."""
    return int(self.blocks.weights.sum())

  def init(self, key: Key) -> PyTree:
    """Parameters phi of a gate."""
    size = self.pixels * self.channels
    shape = self.paths, len(self.blocks.weights)
    kinds = len(self._kinds())
    return {
      "norm": {
        "mean": jnp.zeros(kinds),  # logits of the mixture of statistics
        "var": jnp.zeros(kinds),
        "scale": jnp.ones(self.channels),
        "shift": jnp.zeros(self.channels),
      },
      # without a bias: the batch norm behind would take it out
      "linear": jax.random.normal(key, (size, *shape)) / size**0.5,
      "scale": jnp.ones(shape),
      "shift": jnp.zeros(shape),
    }

  def statistics(self, phi: PyTree, x: Array, real: Array) -> Statistics:
    """Those of a set of inputs x [B, ...], of which `real` f32[B] are 1."""
    moments = self._moments(x)
    share = _shares(real)
    mean = share @ moments.mean
    var = share @ (moments.var + jnp.square(moments.mean - mean[None]))
    logits = self._logits(phi, x, moments, mean, var)
    logit_mean = jnp.einsum("b,bpl->pl", share, logits)
    off = jnp.square(logits - logit_mean[None])
    return Statistics(
      mean, var, logit_mean, jnp.einsum("b,bpl->pl", share, off)
    )

  def scores(self, phi: PyTree, x: Array, of: Statistics) -> Array:
    """sigmoid of the normed logits of each input, f32[B, paths, L]."""
    logits = self._logits(phi, x, self._moments(x), of.mean, of.var)
    z = (logits - of.logit_mean[None]) / jnp.sqrt(of.logit_var + _EPS)[None]
    return jax.nn.sigmoid(phi["scale"][None] * z + phi["shift"][None])

  def factors(self, scores: Array) -> tuple[Array, Array]:
    """What blocks are multiplied by, and which are used.

    Args:
      scores: f32[paths, L], of one input or a mean over some: M first, G last.

    Returns:
      (M' = M I, straight through I to G, f32[L];  I bool[L]).
    """
    scale, importance = scores[0], scores[-1]
    used = _blocks.knapsack(
      jax.lax.stop_gradient(importance), self.blocks, self.capacity, self.order
    )
    through = importance - jax.lax.stop_gradient(importance)
    return scale * (used.astype(scale.dtype) + through), used

  def apply(self, theta: Params, factors: Array) -> Params:
    """theta' = theta * M', block by block."""
    return jax.tree.map(jnp.multiply, theta, self.blocks.expand(factors))

  def of_batch(self, phi: PyTree, x: Array, real: Array) -> Array:
    """The mean scores of a batch under its own statistics, f32[paths, L]."""
    scores = self.scores(phi, x, self.statistics(phi, x, real))
    return jnp.einsum("b,bpl->pl", _shares(real), scores)

  def of_client(
    self, phi: PyTree, data: ClientData
  ) -> tuple[Array, Statistics]:
    """Mean scores over a client's training inputs, and their statistics."""
    real = (jnp.arange(data.index.shape[0]) < data.count).astype(jnp.float32)
    x = data.examples.x[data.index]
    return self.of_batch(phi, x, real), self.statistics(phi, x, real)

  def _images(self, x: Array) -> Array:
    return x.reshape(x.shape[0], self.pixels, self.channels)

  def _moments(self, x: Array) -> "_Moments":
    z = self._images(x)
    mean = z.mean(axis=1)
    return _Moments(mean, jnp.square(z - mean[:, None]).mean(axis=1))

  def _kinds(self) -> tuple[str, ...]:
    # without pixels an instance has nothing to take statistics over
    spatial = ("instance",) if self.pixels > 1 else ()
    return *spatial, "layer", "batch"

  def _logits(
    self, phi: PyTree, x: Array, of: "_Moments", mean: Array, var: Array
  ) -> Array:
    """Linear maps of the switchably normed inputs, f32[B, paths, L]."""
    layer_mean = of.mean.mean(axis=1, keepdims=True)
    layer_var = of.var + jnp.square(of.mean - layer_mean)
    found = {
      "instance": of,
      "layer": _Moments(layer_mean, layer_var.mean(axis=1, keepdims=True)),
      "batch": _Moments(mean[None], var[None]),
    }
    kinds, norm = [found[kind] for kind in self._kinds()], phi["norm"]
    mean = _mix(norm["mean"], [kind.mean for kind in kinds])
    var = _mix(norm["var"], [kind.var for kind in kinds])
    slope = norm["scale"][None] / jnp.sqrt(var + _EPS)  # [B, C]
    start = norm["shift"][None] - mean * slope
    z = self._images(x) * slope[:, None] + start[:, None]
    linear = phi["linear"]
    logits = z.reshape(z.shape[0], -1) @ linear.reshape(linear.shape[0], -1)
    return logits.reshape(-1, *linear.shape[1:])


class _Moments(NamedTuple):
  """Of each input, over its pixels: mean, var f32[B, C]."""

  mean: Array
  var: Array


def gating(
  model: Model,
  input_shape: tuple[int, ...],
  *,
  density: float,
  parts: int = 5,
  first_share: float | None = None,
  order: str = "per_weight",
  separate: bool = True,
) -> Gating:
  """Builds a gate for a model; give it to `pfed_gate` and to `gate_judge`.

  Args:
    model: the network.
    input_shape: shape of one example, (H, W, C) or of one axis.
    density: s in (0, 1], share of the parameters that a client uses at most.
    parts: B, blocks of a tensor.
    first_share: of a tensor's always kept first block; None: min(1 / B, s).
    order: of the knapsack, see `_blocks.knapsack`.
    separate: M and G have a linear map each, as in the paper; False: one for
      both, as in the released code by default.

  Raises:
    UserError: an unknown order, numbers out of range, or a density below that
      of the first blocks.
  """
  if not 0 < density <= 1:
    raise UserError(f"density {density:g} is not in (0, 1]")
  if order not in _blocks.ORDERS:
    raise unknown("order", order, _blocks.ORDERS)
  if first_share is None:
    first_share = min(1 / max(1, parts), density)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  blocks = _blocks.cut(shapes, parts, first_share)
  total = int(blocks.weights.sum())
  capacity = int(density * total + 1e-6)
  images = len(input_shape) == 3
  made = Gating(
    blocks,
    capacity,
    order,
    2 if separate else 1,
    pixels=int(np.prod(input_shape[:2])) if images else 1,
    channels=input_shape[2] if images else int(np.prod(input_shape)),
  )
  jax.eval_shape(made.factors, jnp.zeros((1, len(blocks.weights))))
  return made


def _shares(real: Array) -> Array:
  """f32[B]: 1 / n for each of the n real inputs."""
  count = jnp.sum(real)
  return real / jnp.where(count > 0, count, 1.0)


def _mix(logits: Array, values: list[Array]) -> Array:
  return sum(
    share * value
    for share, value in zip(jax.nn.softmax(logits), values, strict=True)
  )
