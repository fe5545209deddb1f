"""One process of two: `python two_processes.py PORT RANK WANTED`.

Each has two CPU devices; groups of all four, and of two, one of each process.
WANTED.npz holds the loss and the gradient.
"""

import sys

import jax
import numpy as np


def main(port: str, rank: str, wanted: str) -> None:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
  # only now: the model makes arrays when it is imported
  import tiny_steps as steps

  from fedjax_het.core.mesh import replicate
  from fedjax_het.seqpar import groups, pack, step

  texts, weights = steps.documents(steps.FEW)
  plan = steps.plan(
    4, (0, 0, 4, (0, 3)), (1, 0, 2, (1, 2, 4)), lengths=steps.FEW
  )
  with np.load(wanted) as file:
    want = float(file["loss"]), file["grads"]
  # devices are told apart by their place: ids of process 1 start at 2048
  devices = jax.devices()
  assert [d.process_index for d in devices] == [0, 0, 1, 1]
  mesh = step.buddy_mesh([devices[i] for i in (0, 2, 1, 3)])
  limit = step.ulysses_limit(steps.MODEL)
  model, optimizer = steps.MODEL, steps.OPTIMIZER

  def fresh():
    state = step.init_state(steps.parameters(), optimizer)
    return replicate(state, mesh)

  run = jax.jit(step.make_step(model, optimizer, mesh, ladder=(16,)))
  batch = pack.pack_rounds(
    plan, texts, capacity=16, limit=limit, weights=weights
  )
  steps.check(*run(fresh(), step.place(batch, mesh)), want)
  print("single ok", flush=True)

  run = groups.make_group_step(model, optimizer, mesh)
  batch = pack.pack_groups(
    plan, texts, ladder=(16,), limit=limit, weights=weights
  )
  steps.check(*run(fresh(), batch), want)
  print("groups ok", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
