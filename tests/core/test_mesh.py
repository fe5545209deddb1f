"""The same round on two processes; devices are in `test_contract`."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from fedjax_het.algorithms import example
from fedjax_het.core import rounds
from fedjax_het.selection import uniform


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, source_env):
  out = tmp_path_factory.mktemp("processes")
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  here = pathlib.Path(__file__).parent
  env = source_env | {"PYTHONPATH": f"{source_env['PYTHONPATH']}:{here.parent}"}
  command = [sys.executable, str(here / "two_processes.py"), str(port)]
  processes = [
    subprocess.Popen(
      [*command, str(rank), str(out)], env=env, stderr=subprocess.PIPE
    )
    for rank in range(2)
  ]
  for process in processes:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-3000:]
  return [np.load(out / f"{rank}.npz") for rank in range(2)]


@pytest.mark.parametrize("name", ["fed_avg", "hide_n_seek"])
def test_two_processes_equal_one_device(two_processes, name):
  algorithm = example(name, tiny.mlp(), tiny.INPUT_SHAPE)
  state = rounds.init_state(algorithm, jax.random.key(7), tiny.CLIENTS)
  block = rounds.make_block(rounds.make_round(algorithm, uniform(5)), 3)
  state, _ = jax.jit(block)(state, tiny.data())
  for key, want in algorithm.global_params(state.server).items():
    for rank in two_processes:  # every process holds the result
      np.testing.assert_allclose(
        rank[f"{name}/{key}"], want, rtol=1e-5, atol=1e-7
      )
