"""Many runs in one program: seeds, and hyper-parameters as data.

A run's state, and its own partition, get a leading axis [G].  On an accelerator
the runs are vmapped.  On a CPU they are spread over the host devices and mapped
one after another: as in a cohort, XLA CPU runs a batch of small matmuls slower
than the same matmuls in a loop.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from fedjax_het.core.cohort import AXIS
from fedjax_het.core.types import FederatedData, PyTree, Rows

Block = Callable[[PyTree, FederatedData], tuple[PyTree, dict]]

#: `in_axes` of data in which each run has its own partition of one data set.
OWN_PARTITION = FederatedData(None, Rows(0, 0), Rows(0, 0), None, None)


def over_runs(
  block: Block,
  *,
  mesh: Mesh | None = None,
  own_partition: bool = False,
  vmap: bool = False,
) -> Block:
  """Turns a block for one run into a block for G runs.

  Hyper-parameters join by being part of the state: a block over
  `(lr, TrainState)` may build its algorithm from a traced `lr`.

  Args:
    block: (state, data) -> (state, history), for one run; it must not use
      `mesh` itself.
    mesh: devices to spread the runs over, or None.
    own_partition: True if `data.train` and `data.test` have the axis [G] too
      (examples are still shared).
    vmap: all runs of a device at once, instead of one after another.

  Returns:
    (states [G, ...], data) -> (states [G, ...], histories [G, ...]).
  """
  axes = OWN_PARTITION if own_partition else None

  def runs(states, data):
    if vmap:
      return jax.vmap(block, in_axes=(0, axes))(states, data)
    if not own_partition:
      return jax.lax.map(lambda state: block(state, data), states)

    def one(args):
      state, (train, test) = args
      return block(state, data._replace(train=train, test=test))

    return jax.lax.map(one, (states, (data.train, data.test)))

  if mesh is None:
    return runs
  split = Rows(Spec(AXIS), Spec(AXIS)) if own_partition else Spec()
  specs = FederatedData(Spec(), split, split, Spec(), Spec(), Spec())
  spread = jax.shard_map(
    runs,
    mesh=mesh,
    in_specs=(Spec(AXIS), specs),
    out_specs=Spec(AXIS),
    check_vma=False,
  )

  def padded(states, data):
    """Repeats runs until every device has as many, and drops them again."""
    size = jax.tree.leaves(states)[0].shape[0]
    slots = -(-size // mesh.size) * mesh.size
    chosen = jnp.arange(slots) % size
    states = jax.tree.map(lambda leaf: leaf[chosen], states)
    if own_partition:
      rows = jax.tree.map(lambda leaf: leaf[chosen], (data.train, data.test))
      data = data._replace(train=rows[0], test=rows[1])
    out = spread(states, data)
    return jax.tree.map(lambda leaf: leaf[:size], out)

  return padded
