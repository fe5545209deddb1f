"""A training step that runs a plan as one small program a group.

Each task is a `shard_map` over a mesh of its own devices; each device keeps
the sum of its gradients, and one last program over all devices adds these up
and updates the parameters.  Programs are dispatched in the order of the plan
and run as soon as their devices are free: the parameters are on every device,
so nothing waits at the end of a micro-batch, in either form of plan.

Against `step.make_step`: any groups of neighbours, real rings, no padding to
common arrays; but a compilation for each (first device, degree, rung).

In a run of several processes each dispatches the programs that have a device of
its own, and all of them the last one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from fedjax_het.core.types import Array, PyTree
from fedjax_het.models.transformer import Tokens, Transformer
from fedjax_het.seqpar.attention import BLOCK, group_attention, split_degree
from fedjax_het.seqpar.pack import Group, Groups
from fedjax_het.seqpar.step import (
  Step,
  apply_sums,
  token_loss,
  ulysses_limit,
)

_AXES = "ring", "ulysses"


def make_group_step(
  model: Transformer,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  limit: int | None = None,
  block: int = BLOCK,
) -> Step:
  """Builds the step (state, Groups) -> (state, loss f32[]).

  It compiles and dispatches by itself: call it, do not jit it.

  Args:
    model: what to train.
    optimizer: any; it gets the whole gradient.
    mesh: all devices in the plan's order, of any axes (`step.buddy_mesh`).
    limit: as for `pack_groups`; default `ulysses_limit(model)`.
    block: tokens of an attention block.

  Returns:
    A function; state is replicated over `mesh` (`core.mesh.replicate`) and
    donated.  It raises ValueError if the plan is for another D.
  """
  return _GroupStep(model, optimizer, mesh, ulysses_limit(model, limit), block)


class _GroupStep:
  """The programs compiled so far, by group."""

  def __init__(self, model, optimizer, mesh, limit, block):
    self._model, self._limit, self._block = model, limit, block
    self._devices = list(mesh.devices.flat)
    self._all = Mesh(mesh.devices.reshape(-1), ("devices",))
    self._meshes, self._programs = {}, {}
    whole = NamedSharding(self._all, Spec())
    own = NamedSharding(self._all, Spec("devices"))
    self._zeros = jax.jit(
      lambda params: jax.tree.map(
        lambda leaf: jnp.zeros((len(self._devices), *leaf.shape), leaf.dtype),
        (jnp.float32(0), params),
      ),
      out_shardings=own,
    )

    def finish(state, sums, weight):
      total = jax.tree.map(lambda leaf: leaf.sum(0), sums)
      return apply_sums(optimizer, state, total, weight)

    self._finish = jax.jit(finish, out_shardings=whole, donate_argnums=0)

  def __call__(self, state, batch: Groups):
    if batch.num_devices != len(self._devices):
      raise ValueError(
        f"a plan for {batch.num_devices} devices on {len(self._devices)}"
      )
    sums = self._zeros(state.params)
    leaves, tree = jax.tree.flatten(sums)
    shapes = [leaf.shape[1:] for leaf in leaves]
    params = [_shards(leaf) for leaf in jax.tree.leaves(state.params)]
    sums = [_shards(leaf) for leaf in leaves]
    del leaves
    for group in batch.groups:
      self._train(group, params, sums, shapes, tree, state.params)
    own = NamedSharding(self._all, Spec("devices"))
    count = len(self._devices)
    sums = jax.tree.unflatten(
      tree, _joined(sums, shapes, own, self._devices, count)
    )
    return self._finish(state, sums, np.float32(batch.weight))

  def _train(self, group: Group, params, sums, shapes, tree, like) -> None:
    """Adds a group's loss and gradient to the sums of its devices."""
    devices = self._devices[group.first : group.first + group.degree]
    mine = [d for d in devices if d in sums[0]]
    if not mine:
      return  # another process's
    mesh = self._mesh(group.first, group.degree)
    rows, whole = NamedSharding(mesh, Spec(_AXES)), NamedSharding(mesh, Spec())
    given = jax.tree.unflatten(
      jax.tree.structure(like),
      [
        jax.make_array_from_single_device_arrays(
          leaf.shape, whole, [shards[d] for d in mine]
        )
        for leaf, shards in zip(jax.tree.leaves(like), params, strict=True)
      ],
    )
    total = jax.tree.unflatten(
      tree, _joined(sums, shapes, rows, mine, group.degree)
    )
    tokens = Tokens(
      *(
        jax.make_array_from_callback(part.shape, rows, part.__getitem__)
        for part in group.tokens
      )
    )
    total = self._program(group.first, group.degree)(given, total, tokens)
    for shards, leaf in zip(sums, jax.tree.leaves(total), strict=True):
      shards.update(_shards(leaf))

  def _mesh(self, first: int, degree: int) -> Mesh:
    if (first, degree) not in self._meshes:
      devices = np.asarray(self._devices[first : first + degree])
      shape = split_degree(degree, self._limit)
      self._meshes[first, degree] = Mesh(devices.reshape(shape), _AXES)
    return self._meshes[first, degree]

  def _program(self, first: int, degree: int):
    if (first, degree) not in self._programs:
      sizes = split_degree(degree, self._limit)
      ring, ulysses = (
        (axis,) if size > 1 else ()
        for axis, size in zip(_AXES, sizes, strict=True)
      )
      attention = group_attention(ring, ulysses, block=self._block)

      def local(params, total, tokens):
        part = jax.value_and_grad(token_loss, 1)(
          self._model, params, tokens, attention
        )
        return jax.tree.map(lambda a, b: a + b[None], total, part)

      rows = Spec(_AXES)
      mapped = jax.shard_map(
        local,
        mesh=self._mesh(first, degree),
        in_specs=(Spec(), rows, rows),
        out_specs=rows,
        check_vma=False,  # gradients stay those of each device
      )
      self._programs[first, degree] = jax.jit(mapped, donate_argnums=1)
    return self._programs[first, degree]


def _shards(array: Array) -> dict[jax.Device, Array]:
  """What this process holds of `array`, by device; nothing is copied."""
  return {shard.device: shard.data for shard in array.addressable_shards}


def _joined(
  sums: Sequence[dict], shapes, sharding, devices, count: int
) -> list[PyTree]:
  """One array [count, ...] a leaf from the parts [1, ...] on `devices`."""
  return [
    jax.make_array_from_single_device_arrays(
      (count, *shape), sharding, [shards[d] for d in devices if d in shards]
    )
    for shards, shape in zip(sums, shapes, strict=True)
  ]
