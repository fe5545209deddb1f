"""Runs with a partition and a rate of their own, in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_het.algorithms import fed_avg
from fedjax_het.core import mesh, rounds, sweep
from fedjax_het.core.types import Rows
from fedjax_het.selection import uniform

RATES = (0.05, 0.1, 0.4)


def _block(state, data):
  rate, train = state
  algorithm = fed_avg(tiny.mlp(), optimizer=optax.sgd(rate), batch_size=8)
  block = rounds.make_block(rounds.make_round(algorithm, uniform(4)), 2)
  train, history = block(train, data)
  return (rate, train), history


def _start(rate):
  algorithm = fed_avg(tiny.mlp(), optimizer=optax.sgd(rate), batch_size=8)
  key = jax.random.key(3)
  return jnp.float32(rate), rounds.init_state(algorithm, key, tiny.CLIENTS)


@pytest.mark.parametrize("devices", [1, 2])  # 3 runs on 2 devices: padding
@pytest.mark.parametrize("vmap", [True, False])
def test_each_run_equals_the_run_alone(vmap, devices):
  each = [tiny.data()]
  for shift in (1, 2):  # partitions of the same examples
    roll = jnp.roll(each[0].train.index, shift, axis=0)
    each.append(each[0]._replace(train=Rows(roll, each[0].train.count)))
  together = each[0]._replace(
    train=jax.tree.map(lambda *x: jnp.stack(x), *[d.train for d in each]),
    test=jax.tree.map(lambda *x: jnp.stack(x), *[d.test for d in each]),
  )
  starts = [_start(rate) for rate in RATES]
  many = sweep.over_runs(
    _block,
    own_partition=True,
    vmap=vmap,
    mesh=mesh.client_mesh(jax.devices()[:devices]) if devices > 1 else None,
  )
  states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
  (_, got), history = jax.jit(many)(states, together)
  assert history["rounds"].ids.shape == (3, 2, 4)
  for i, (start, data) in enumerate(zip(starts, each, strict=True)):
    (_, want), _ = jax.jit(_block)(start, data)
    for name, leaf in want.server.params.items():
      np.testing.assert_allclose(
        got.server.params[name][i], leaf, rtol=1e-4, atol=1e-6
      )
