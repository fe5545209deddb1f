"""Published models and clusters, and clusters of the user's own.

FlexSP's constants count in milliseconds and MiB, and its bandwidths in
"GB/s" of 1000 MiB.
"""

from collections.abc import Mapping

import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.seqpar.cost import ModelCost
from fedjax_het.seqpar.types import Cluster

MIB = 2**20
GIB = 2**30
_GB = 1000 * MIB

# quadratic, linear, fixed in ms; activations in MiB per token; hidden, layers
_GPT = {
  "7b": (5.128e-6, 0.1839576, 629.3563, 4.480441895, 4096, 32),
  "13b": (9.2852e-6, 0.3060189, 1132.5632, 4.220439453, 5120, 40),
  "30b": (15.4262e-6, 0.8035742, 2789.3644, 3.417381836, 6656, 60),
}
# Parameters in units of 2^30; more with a longer table of positions.
_PARAMETERS = {
  ("7b", 192): 7.11745,
  ("7b", 384): 7.84987,
  ("13b", 192): 13.11605,
  ("13b", 384): 14.03158,
  ("30b", 192): 31.52514,
  ("30b", 384): 32.71532,
}
# All-to-all of 8-GPU A100 nodes, by degree and InfiniBand links a node.
_A100 = {
  2: {2: 119.54, 4: 104.07, 8: 96.5, 16: 10.33, 32: 5.94, 64: 4.87},
  4: {2: 119.54, 4: 104.07, 8: 96.5, 16: 20.01, 32: 10.53, 64: 7.77},
}


def gpt(size: str, context: int = 192) -> ModelCost:
  """FlexSP's GPT on A100 with ZeRO-3 and selective checkpointing.

  Its Ulysses degree is not limited by heads: the published solver uses 64.

  Args:
    size: "7b", "13b" or "30b".
    context: longest sequence in thousands of tokens, 192 or 384.

  Returns:
    The measured coefficients (of 64 GPUs).

  Raises:
    UserError: for another size or context.
  """
  if size not in _GPT:
    raise unknown("GPT size", size, _GPT)
  if (size, context) not in _PARAMETERS:
    raise UserError(f"GPT {size} was published with 192 and 384, not {context}")
  quadratic, linear, fixed, token, hidden, layers = _GPT[size]
  return ModelCost(
    quadratic=quadratic * 1e-3,
    linear=linear * 1e-3,
    fixed=fixed * 1e-3,
    token_bytes=token * MIB,
    parameters=_PARAMETERS[size, context] * GIB,
    layers=layers,
    hidden=hidden,
  )


def a100_cluster(
  nodes: int = 8, memory_gib: float = 30.0, links: int = 2
) -> Cluster:
  """FlexSP's cluster: nodes of 8 A100, its measured all-to-all bandwidths.

  Args:
    nodes: a power of two.
    memory_gib: of each GPU's 40 that a step may use (the published solver:
      30, its training: 28).
    links: InfiniBand links a node, 2 or 4.

  Returns:
    A `Cluster`; degrees above 64 were not measured and are not offered.

  Raises:
    UserError: for other links, or nodes that are no power of two.
  """
  if links not in _A100:
    raise UserError(f"measured with 2 and 4 links a node, not {links}")
  table = {d: v * _GB for d, v in _A100[links].items()}
  return cluster(nodes, 8, memory_gib * GIB, table)


def cluster(
  nodes: int,
  node_size: int,
  memory: float | np.ndarray,
  bandwidth: Mapping[int, float],
  speed: float | np.ndarray = 1.0,
) -> Cluster:
  """A cluster whose devices or nodes may differ.

  Args:
    nodes, node_size: powers of two.
    memory: bytes a step may use: one for all, one a node, or one a device.
    bandwidth: degree -> bytes/s, measured, or from `link_bandwidth`.
    speed: relative speed, given like `memory`.

  Returns:
    The `Cluster`.  Groups are runs of neighbours: put devices that are alike
    side by side.

  Raises:
    UserError: for counts that are no powers of two or values that do not fit.
  """
  for name, count in (("nodes", nodes), ("node_size", node_size)):
    if count < 1 or count & (count - 1):
      raise UserError(f"{name} = {count} is no power of two")
  n = nodes * node_size
  return Cluster(
    speed=_per_device("speed", speed, nodes, n),
    memory=_per_device("memory", memory, nodes, n),
    node_size=node_size,
    bandwidth={d: v for d, v in bandwidth.items() if d <= n},
  )


def link_bandwidth(
  nodes: int, node_size: int, inside: float, between: float
) -> dict[int, float]:
  """All-to-all bandwidths for a cluster that was not measured.

  A group over k nodes sends the share (k - 1) / k of its data between nodes,
  and that is what it waits for.  (FlexSP's A100s with 5 GB/s a device between
  nodes: 10, 6.7, 5.7 for degrees 16, 32, 64, measured 10.3, 5.9, 4.9.)

  Args:
    nodes, node_size: powers of two.
    inside, between: bytes/s of a device within its node and to other nodes.

  Returns:
    degree -> bytes/s, for every power of two from 2 to all devices.
  """
  table, degree = {}, 2
  while degree <= nodes * node_size:
    over = -(-degree // node_size)
    table[degree] = inside
    if over > 1:
      table[degree] = min(inside, between * over / (over - 1))
    degree *= 2
  return table


def _per_device(name, value, nodes, n):
  value = np.atleast_1d(np.asarray(value, np.float64))
  if value.ndim > 1 or value.size not in (1, nodes, n):
    raise UserError(
      f"{name} has shape {value.shape}: give one value, {nodes} (nodes) or "
      f"{n} (devices)"
    )
  return np.repeat(value, n // value.size)
