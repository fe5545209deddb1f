"""One process of two: `python two_processes.py PORT RANK OUT`.

Each has two CPU devices; a round runs over the mesh of all four, with gloo.
"""

import sys

import jax
import numpy as np


def main(port: str, rank: str, out: str) -> None:
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 2)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(rank))
  # only now: the contract makes arrays when it is imported
  import tiny

  from fedjax_het.algorithms import example
  from fedjax_het.core import mesh, rounds
  from fedjax_het.selection import uniform

  devices = mesh.client_mesh()
  assert devices.size == 4 and jax.process_count() == 2
  results = {}
  for name in ("fed_avg", "hide_n_seek"):
    algorithm = example(name, tiny.mlp(), tiny.INPUT_SHAPE)
    state = rounds.init_state(algorithm, jax.random.key(7), tiny.CLIENTS)
    state, data = mesh.replicate((state, tiny.data()), devices)
    block = rounds.make_block(
      rounds.make_round(algorithm, uniform(5), mesh=devices), 3
    )
    state, _ = jax.jit(block)(state, data)
    params = algorithm.global_params(state.server)
    results |= {f"{name}/{k}": np.asarray(v) for k, v in params.items()}
  np.savez(f"{out}/{rank}.npz", **results)


if __name__ == "__main__":
  main(*sys.argv[1:])
