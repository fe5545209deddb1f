"""Meshes: the same round on many devices, and on many hosts.

A mesh has one axis, "clients".  Pass it to `make_round`; everything else stays.
Several hosts run the same program after `jax.distributed.initialize()` (Slurm,
GKE and TPU pods are found by JAX itself), with gloo between CPU hosts.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from fedjax_het.core.cohort import AXIS
from fedjax_het.core.types import PyTree


def client_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh over `devices` (default: all, of all processes)."""
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (AXIS,))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """Puts a tree whole on every device of `mesh`, across processes too.

  Args:
    tree: arrays (typed keys too) whose values are equal in every process.
    mesh: from `client_mesh`.
  """
  sharding = NamedSharding(mesh, Spec())

  def put(leaf):
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      data = jax.device_put(np.asarray(jax.random.key_data(leaf)), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.device_put(np.asarray(leaf), sharding)

  return jax.tree.map(put, tree)
