r"""What a group of devices needs for a micro-batch: seconds and bytes.

FlexSP's model.  A group of d devices that computes the sequences s_1 .. s_n
together takes

    sum_k (a1 f s_k^2 + a2 s_k) / (d v) + b / v  +  sum_k c_d s_k / d

seconds: attention, everything linear in the tokens, a cost per micro-batch,
and the exchange between the devices; v is the speed of the slowest device of
the group.  It holds at most d (m - states) / bytes-per-token tokens, where m
is the smallest memory of the group.

Exchange.  Ulysses splits the heads: 4 all-to-alls (queries, keys, values,
outputs) forward and as many backward, so
c_d = 2 w L h (2 H + 2 K) / bandwidth_d for L layers, H query heads of size h,
element width w; K is the number of key/value heads *sent*: where the degree
does not divide them, each is repeated until it does, lcm(heads, degree).
Only degrees that divide H can be split so.  Larger groups put a ring around
the Ulysses groups: d = u r, where u is the largest power of two that divides
both, and every device sends its keys and values r - 1 times forward, and with
their gradients twice as much backward (not hidden behind computation here).

Causal attention.  a1 is measured on causal attention, so it counts half of the
s^2 pairs already.  Splitting heads leaves every device the same work: f = 1.
In a ring, devices that hold a contiguous piece each wait for the last one,
which sees all keys: f = 2 - 1/r.  With tokens dealt out in turn (striped, as
`attention` does; or zigzag) f = 1 again.

References:
  Wang et al., FlexSP: Accelerating Large Language Model Training via Flexible
  Sequence Parallelism, ASPLOS 2025, arXiv:2412.01523 (model and constants
  from the authors' solver, github.com/PKU-DAIR/Hetu-Galvatron).
  Jacobs et al., DeepSpeed Ulysses, 2023, arXiv:2309.14509.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar.types import Cluster

# Bytes per parameter: 2 + 2 (bfloat16 weights and gradients) and 12 (float32
# weights and Adam's two moments); what each ZeRO stage splits over devices.
_SPLIT_BYTES = {0: 0, 1: 12, 2: 14, 3: 16}
STATE_BYTES = 16


class ModelCost(NamedTuple):
  """Coefficients of a model on a device of speed 1.

  quadratic: a1, seconds per token^2 (causal attention, forward and backward).
  linear: a2, seconds per token.
  fixed: b, seconds per micro-batch of a group.
  token_bytes: activations kept per token.
  parameters: how many, in training with Adam and mixed precision.
  layers, hidden: L and H h.
  heads, kv_heads: query heads H and key/value heads; None: no limit on the
    Ulysses degree, and as many key/value as query heads.
  zero: ZeRO stage 0 to 3, how weights, gradients and moments are split.
  gathered: whether weights are gathered from all devices for every
    micro-batch, which lets only barrier plans run; None: with stage 3.
  striped: whether a ring balances causal attention (see the module's text).
  element_bytes: w, width of what is exchanged.
  """

  quadratic: float
  linear: float
  fixed: float
  token_bytes: float
  parameters: float
  layers: int
  hidden: int
  heads: int | None = None
  kv_heads: int | None = None
  zero: int = 3
  gathered: bool | None = None
  striped: bool = True
  element_bytes: int = 2

  @property
  def needs_barrier(self) -> bool:
    return self.zero == 3 if self.gathered is None else self.gathered

  def split(self, degree: int) -> tuple[int, int]:
    """(Ulysses degree u, ring degree r) of a group of u r devices."""
    if self.heads is None:
      return degree, 1
    ulysses = math.gcd(degree, self.heads)
    return ulysses, degree // ulysses

  def state_bytes(self, num_devices: int) -> float:
    """Weights, gradients and moments that each of the devices holds."""
    split = _SPLIT_BYTES[self.zero]
    return self.parameters * (STATE_BYTES - split + split / num_devices)

  def exchanged_bytes(self, degree: int) -> float:
    """Bytes that a group sends per token, over all its devices."""
    if degree == 1:
      return 0.0
    ulysses, ring = self.split(degree)
    keys = self.hidden  # width of the keys that are sent
    if self.heads is not None and self.kv_heads is not None:
      sent = math.lcm(self.kv_heads, ulysses)
      keys = self.hidden // self.heads * sent
    width = self.element_bytes * self.layers
    all_to_all = 2 * width * (2 * self.hidden + 2 * keys) * (ulysses > 1)
    return all_to_all + 3 * width * 2 * keys * (ring - 1)

  def causal_factor(self, degree: int) -> float:
    """f: the busiest device's attention over the mean, 1 where balanced."""
    ring = self.split(degree)[1]
    return 1.0 if self.striped else 2.0 - 1.0 / ring


class Kinds(NamedTuple):
  """The different groups that a cluster offers.

  Groups of one degree with the same slowest speed and smallest memory are of
  one kind; in a homogeneous cluster there is one kind a degree.

  degree: i64[J], ascending.
  speed: f64[J], of the slowest device.
  tokens: i64[J], how many tokens the whole group holds.
  fixed: f64[J], seconds of an empty micro-batch.
  blocks: degree -> i64[D / degree], the kind of each aligned block.
  """

  degree: np.ndarray
  speed: np.ndarray
  tokens: np.ndarray
  fixed: np.ndarray
  blocks: dict[int, np.ndarray]


def kinds(
  cluster: Cluster, model: ModelCost, degrees: Sequence[int] | None = None
) -> Kinds:
  """Lists the kinds of groups of a cluster.

  Args:
    cluster: the devices.
    model: whose memory and fixed cost count.
    degrees: which degrees to offer; None: every power of two that the cluster
      has a bandwidth for, and 1.

  Returns:
    The `Kinds`; one that includes a device too small for the model's states
    holds 0 tokens.

  Raises:
    UserError: if the cluster is not well formed, a degree is no power of two,
      does not divide the number of devices or has no bandwidth, or if the
      model's states leave no memory for a token anywhere.
  """
  _check(cluster, model)
  n = cluster.num_devices
  if degrees is None:
    degrees = [d for d in {1, *cluster.bandwidth} if n % d == 0]
  for d in degrees:
    if d < 1 or d & (d - 1) or n % d or (d > 1 and d not in cluster.bandwidth):
      known = sorted(d for d in {1, *cluster.bandwidth} if n % d == 0)
      raise UserError(
        f"degree {d} is not offered: {n} devices with these bandwidths offer "
        f"{known}"
      )
  memory = np.asarray(cluster.memory, np.float64)
  speeds = np.asarray(cluster.speed, np.float64)
  room = (memory - model.state_bytes(n)) / model.token_bytes
  # a little slack, so that a capacity that is whole stays so after division
  per_device = np.floor(room + 1e-9).astype(np.int64)
  rows, blocks = [], {}
  for d in sorted(degrees):
    block = np.stack(
      [
        np.full(n // d, d),
        speeds.reshape(-1, d).min(1),
        np.maximum(per_device.reshape(-1, d).min(1), 0) * d,
      ],
      axis=1,
    )
    unique, index = np.unique(block, axis=0, return_inverse=True)
    blocks[d] = index.ravel() + sum(map(len, rows))
    rows.append(unique)
  table = np.concatenate(rows)
  if not table[:, 2].any():
    gib = 2**30
    raise UserError(
      f"the model's states take {model.state_bytes(n) / gib:.1f} GiB on each "
      f"of {n} devices, which have at most {memory.max() / gib:.1f} GiB: use "
      "more devices or a higher ZeRO stage"
    )
  degree, speed, tokens = table[:, 0], table[:, 1], table[:, 2]
  return Kinds(
    degree.astype(np.int64),
    speed,
    tokens.astype(np.int64),
    model.fixed / speed,
    blocks,
  )


def sequence_seconds(
  lengths: np.ndarray, cluster: Cluster, model: ModelCost, offered: Kinds
) -> np.ndarray:
  """Seconds that each sequence adds to a group of each kind, f64[S, J]."""
  s = np.asarray(lengths, np.float64)[:, None]
  degree = offered.degree
  factor = np.array([model.causal_factor(int(d)) for d in degree])
  exchange = np.array(
    [
      model.exchanged_bytes(int(d)) / cluster.bandwidth[int(d)]
      if d > 1
      else 0.0
      for d in degree
    ]
  )
  compute = model.quadratic * factor * s * s + model.linear * s
  return compute / (degree * offered.speed) + exchange * s / degree


def _check(cluster: Cluster, model: ModelCost) -> None:
  n = cluster.num_devices
  if len(cluster.memory) != n or n < 1:
    raise UserError(
      f"{n} speeds and {len(cluster.memory)} memories: give one of each for "
      "every device"
    )
  rates = [*cluster.speed, *cluster.bandwidth.values()]
  if not all(rate > 0 for rate in rates):
    raise UserError("speeds and bandwidths must be positive")
  costs = model.quadratic, model.linear, model.fixed, model.parameters
  if min(costs) < 0 or not model.quadratic + model.linear > 0:
    raise UserError(
      "quadratic, linear, fixed and parameters must not be negative, and a "
      "token must cost something: fit the model anew"
    )
  if not model.token_bytes > 0:
    raise UserError(f"token_bytes = {model.token_bytes} must be positive")
  if model.zero not in _SPLIT_BYTES:
    raise UserError(f"ZeRO stage {model.zero} is none of 0, 1, 2, 3")
  if model.heads is not None and model.hidden % model.heads:
    raise UserError(
      f"{model.heads} heads do not divide the width {model.hidden}"
    )
  if model.kv_heads is not None and (
    model.heads is None or model.heads % model.kv_heads
  ):
    raise UserError(
      f"{model.kv_heads} key/value heads do not divide {model.heads} heads"
    )
