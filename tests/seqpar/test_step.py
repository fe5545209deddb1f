"""Any plan as a training step = the step on one device."""

import functools
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_steps as steps

from fedjax_het.core.errors import UserError
from fedjax_het.core.mesh import replicate
from fedjax_het.models.transformer import transformer
from fedjax_het.seqpar import groups, pack, step
from fedjax_het.seqpar.cost import ModelCost
from fedjax_het.seqpar.plan import plan
from fedjax_het.seqpar.presets import cluster, link_bandwidth

PLANS = {
  "one group": [(0, 0, 8, tuple(range(14)))],
  "4 + 2 + 1": [
    (0, 0, 4, (0, 3)), (0, 4, 2, (2,)), (0, 6, 1, (4,)), (1, 6, 1, (6,)),
    (1, 0, 8, (1, 5, 7, 8, 9, 10, 11, 12, 13)),
  ],
  "laminar": [
    (0, 0, 8, (0,)), (1, 0, 4, (1, 2)), (1, 4, 2, (3, 8)), (1, 6, 1, (4,)),
    (1, 7, 1, (5,)), (2, 6, 1, (6, 9)), (2, 7, 1, (7, 10, 11)),
    (3, 7, 1, (12, 13)),
  ],
  "pairs": [
    (i // 4, i % 4 * 2, 2, tuple(range(2 * i, 2 * i + 2))) for i in range(7)
  ],
  "halves": [
    (0, 4, 4, tuple(range(0, 14, 2))), (0, 0, 4, tuple(range(1, 14, 2))),
  ],
  "steps": [
    (0, 0, 4, (0, 1)), (0, 4, 4, (2, 3, 4, 5)), (1, 0, 4, (6, 7, 8)),
    (1, 4, 4, (9, 10)), (2, 0, 4, (11, 12, 13)),
  ],
}  # fmt: skip

# 24 tokens a device: the longest document takes all devices, the batch rounds
CLUSTER = cluster(1, 8, 24, link_bandwidth(1, 8, 1e9, 1e9))
COST = ModelCost(1e-7, 1e-5, 1e-4, 1.0, 0.0, 1, 8, heads=2, kv_heads=1, zero=0)


@pytest.fixture(scope="module")
def problem():
  texts, weights = steps.documents()
  params = steps.parameters()
  return texts, weights, steps.one_device(params, texts, weights)


def fresh(mesh):
  state = step.init_state(steps.parameters(), steps.OPTIMIZER)
  return replicate(state, mesh)


def packed(made, texts, weights, mesh, **options):
  options = {"capacity": 96, "rounds": 8, **options}
  limit = step.ulysses_limit(steps.MODEL)
  batch = pack.pack_rounds(made, texts, limit=limit, weights=weights, **options)
  return step.place(batch, mesh)


def test_one_program_runs_every_plan(problem):
  """Degrees 1, 2 (keys repeated), 4 and 8 (rings of Ulysses pairs)."""
  texts, weights, want = problem
  mesh = step.buddy_mesh()
  run = jax.jit(
    step.make_step(steps.MODEL, steps.OPTIMIZER, mesh, ladder=(96,), block=16)
  )
  plans = [steps.plan(8, *tasks) for tasks in PLANS.values()]
  plans += [
    plan(steps.LENGTHS, CLUSTER, COST, name) for name in ("shapes", "tree")
  ]
  assert len(plans) >= 5 and max(len(made.tasks) for made in plans) >= 8
  for made in plans:
    batch = packed(made, texts, weights, mesh)
    state, loss = run(fresh(mesh), batch)
    steps.check(state, loss, want)
  assert run._cache_size() == 1
  # the second step's momentum is that of the optimiser on one device
  state, _ = run(state, batch)
  params = jax.tree.map(
    lambda p, g: p - np.float32(0.1) * g, steps.parameters(), trace(want[1])
  )
  _, again = steps.one_device(params, texts, weights)
  second = steps.flat(state.opt_state[0].trace)
  error = np.linalg.norm(second - (again + 0.9 * want[1]))
  assert error < 1e-5 * np.linalg.norm(again)


def trace(flat):
  """A flat gradient as the tree of the parameters."""
  leaves, tree = jax.tree.flatten(steps.parameters())
  cuts = np.cumsum([leaf.size for leaf in leaves])[:-1]
  parts = [
    part.reshape(leaf.shape).astype(np.float32)
    for part, leaf in zip(np.split(flat, cuts), leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, parts)


@pytest.mark.parametrize(
  ("limit", "names"),
  [(None, ["one group", "4 + 2 + 1"]), (1, ["one group"])],
  ids=["ulysses in a ring", "ring"],
)
def test_a_program_for_each_group(problem, limit, names):
  texts, weights, want = problem
  mesh = step.buddy_mesh()
  run = groups.make_group_step(
    steps.MODEL, steps.OPTIMIZER, mesh, limit=limit, block=16
  )
  for name in names:
    batch = pack.pack_groups(
      steps.plan(8, *PLANS[name], barrier=True),
      texts,
      ladder=(96,),
      limit=step.ulysses_limit(steps.MODEL, limit),
      weights=weights,
    )
    steps.check(*run(fresh(mesh), batch), want)


def test_six_devices_have_pairs():
  """No group crosses an odd factor; a device uses the rung that it needs."""
  mesh = step.buddy_mesh(jax.devices()[:6])
  assert mesh.devices.shape == (3, 2)
  lengths = 9, 17, 5, 8
  texts, weights = steps.documents(lengths)
  made = steps.plan(
    6, (0, 0, 2, (1,)), (0, 2, 1, (0,)), (0, 4, 2, (2, 3)), lengths=lengths
  )
  run = jax.jit(
    step.make_step(steps.MODEL, steps.OPTIMIZER, mesh, ladder=(5, 9), block=8)
  )
  batch = packed(made, texts, weights, mesh, capacity=9)
  want = steps.one_device(steps.parameters(), texts, weights)
  steps.check(*run(fresh(mesh), batch), want)


@pytest.mark.slow
def test_two_processes(source_env, tmp_path):
  texts, weights = steps.documents(steps.FEW)
  loss, grads = steps.one_device(steps.parameters(), texts, weights)
  np.savez(tmp_path / "wanted.npz", loss=loss, grads=grads)
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  here = pathlib.Path(__file__).parent
  env = source_env | {"PYTHONPATH": f"{source_env['PYTHONPATH']}:{here.parent}"}
  command = [sys.executable, str(here / "two_processes.py"), str(port)]
  start = functools.partial(
    subprocess.Popen,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  processes = [
    start([*command, str(rank), str(tmp_path / "wanted.npz")])
    for rank in range(2)
  ]
  for process in processes:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    assert "single ok" in out and "groups ok" in out


def test_mistakes(problem):
  texts, weights, _ = problem
  mesh = step.buddy_mesh()
  run = step.make_step(steps.MODEL, steps.OPTIMIZER, mesh, ladder=(32,))
  batch = packed(steps.plan(8, *PLANS["one group"]), texts, weights, mesh)
  with pytest.raises(ValueError, match="96 tokens a device, a ladder up to 32"):
    run(fresh(mesh), batch)
  pair = step.buddy_mesh(jax.devices()[:2])
  for run in (
    step.make_step(steps.MODEL, steps.OPTIMIZER, pair, ladder=(96,)),
    lambda state, _: groups.make_group_step(steps.MODEL, steps.OPTIMIZER, pair)(
      state, pack.Groups((), 8, 1.0)
    ),
  ):
    with pytest.raises(ValueError, match="a plan for 8 devices on 2"):
      run(fresh(mesh), batch)
  other = np.asarray(jax.devices()).reshape(2, 4)
  other = jax.sharding.Mesh(other, ("a", "b"))
  with pytest.raises(ValueError, match="a mesh of `buddy_mesh`"):
    step.make_step(steps.MODEL, steps.OPTIMIZER, other, ladder=(96,))
  with pytest.raises(UserError, match="power of two"):
    step.ulysses_limit(steps.MODEL, 3)


@pytest.mark.parametrize(
  ("heads", "most", "want"),
  [(12, None, 4), (8, 2, 2), (8, 64, 8), (3, None, 1)],
)
def test_ulysses_limit(heads, most, want):
  model = transformer(steps.SHAPE._replace(heads=heads))
  assert step.ulysses_limit(model, most) == want
