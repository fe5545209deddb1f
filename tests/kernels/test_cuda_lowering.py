"""Programs lowered for CUDA hold the kernels; nothing here needs a GPU."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("lower_for_cuda.py")


@pytest.fixture(scope="module")
def seen(compile_env):
  if importlib.util.find_spec("jax_cuda13_plugin") is None:
    pytest.skip("jax_cuda13_plugin, which has the launcher, is not installed")
  path = f"{compile_env['PYTHONPATH']}:{SCRIPT.parents[1]}"
  done = subprocess.run(
    [sys.executable, SCRIPT],
    env={**compile_env, "PYTHONPATH": path},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize(
  "case, calls",
  [
    ("default", 2),  # planes, finish
    ("integer weights", 1),
    ("float weights", 1),
    ("triton", 2),
    ("xla", 0),
    ("both", 2),  # beside plain JAX for the CPU
    ("vmap", 1),  # inside a loop
    ("grad", 0),  # of plain JAX
    ("shard_map", 1),
    ("scan", 1),
    ("zeroed", 1),
    ("pack_signs", 1),
    ("sample_signs", 1),
    ("overlap_mean", 1),
    ("overlap_mean_blocks", 1),
    ("sparse_sum", 1),
    ("vote_step", 2),
    ("engine", 2),  # votes, and the packing of what goes down
  ],
)
def test_number_of_kernel_calls(seen, case, calls):
  assert seen[case] == f"{calls} calls"


def test_one_artefact_for_both_platforms(seen):
  assert seen["export"] == "cpu cuda"


def test_the_architecture_has_to_be_known(seen):
  assert "ValueError" in seen["nothing known"]
  assert "bridge.cuda_arch(90)" in seen["nothing known"]


def test_ptx_is_old_enough_for_cuda_12_8(seen):
  assert [float(v) <= 8.7 for v in seen["ptx"].split()] == [True, True]


def test_arrays_are_counted(seen):
  assert "no array for 'y_ptr'" in seen["too few"]
  assert "more arrays than parameters" in seen["too many"]
