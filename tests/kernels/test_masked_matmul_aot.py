"""Machine code of masked_matmul for sm_80 and sm_90, without a GPU."""

import importlib.util
import json
import subprocess
import sys

import pytest

# Run in a process of its own: Triton compiles nothing where it is interpreted.
# Prints {case: [report, and its copies to shared memory by bytes]}.
COMPILE = """
import json, re, sys
from fedjax_het_kernels import aot
from fedjax_het_kernels.bridge.compile import compile_kernel
from fedjax_het_kernels.masked_matmul import op

found = {}
for case in aot.cases("masked_matmul"):
  if case.name not in sys.argv[1:]:
    continue
  for arch in aot.ARCHITECTURES:
    for launch, inputs, outputs in aot.launches(getattr(op, case.op), case):
      kernel, _ = compile_kernel(launch, [*inputs, *outputs], arch)
      widths = r"cp\\.async\\.c[ag].*?\\], (0x\\w+)"
      copies = re.findall(widths, kernel.asm["ptx"])
      report = aot.report(launch, inputs, outputs, arch)._asdict()
      report["copies"] = [int(width, 16) for width in copies]
      found.setdefault(case.name, []).append(report)
json.dump(found, sys.stdout)
"""
# The same for programs lowered for CUDA: how many kernels each calls.
LOWER = """
import json, sys
import jax, jax.numpy as jnp
from fedjax_het_kernels.bridge import cuda_arch
from fedjax_het_kernels.masked_matmul.op import masked_matmul, ste_update

shape = jax.ShapeDtypeStruct
x, y = shape((3, 5, 40), jnp.bfloat16), shape((3, 5, 20), jnp.bfloat16)
weights, bits = shape((40, 20), jnp.bfloat16), shape((3, 2, 20), jnp.uint32)
scores = shape((3, 40, 20), jnp.float32)

def calls(function, *arrays):
  traced = jax.jit(function).trace(*arrays)
  text = traced.lower(lowering_platforms=("cuda",)).as_text()
  return text.count("triton_kernel_call_ffi")

def loss(x, weights, bits, scores):
  return masked_matmul(x, weights, bits, scores).astype(jnp.float32).sum()

def step(x, y, weights, scores):
  return ste_update(x, y, weights, scores, learning_rate=0.1)

with cuda_arch(90):
  found = {
    "product": calls(masked_matmul, x, weights, bits),
    "gradients": calls(jax.grad(loss, (0, 1, 3)), x, weights, bits, scores),
    "step": calls(step, x, y, weights, scores),
    "seeds": calls(
      jax.vmap(masked_matmul, (None, None, 0)),
      x, weights, shape((4, 3, 2, 20), jnp.uint32),
    ),
  }
json.dump(found, sys.stdout)
"""
# Numbers of weights that a program masks in a trip of its innermost loop.
TILE = {"bfloat16": 64 * 128, "float32": 64 * 64}


def run(env, code, *arguments):
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    env=env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def check(reports):
  """What must hold for every report of these cases.

  Args:
    reports: {name of a case: reports as dictionaries}.
  """
  assert reports
  for name, found in reports.items():
    assert {report["arch"] for report in found} == {80, 90}
    for report in found:
      assert report["stack"] == 0, f"{name}: registers spill: {report}"
      assert report["tensor"], f"{name}: no tensor cores: {report}"
      # What a program has on GPUs between sm_80 and sm_90.
      assert report["shared"] <= 99 * 1024, f"{name}: {report}"
      if "odd" in name:
        continue
      if report["kernel"] == "ste_update":
        # Scores, x and gradients, but for the learning rate.
        assert report["loads"].pop("ld.global.b32") == 1
        assert set(report["loads"]) == {"ld.global.v4.b32"}, f"{name}: {report}"
      else:
        assert report["loads"] == {}, f"{name}: not copied ahead: {report}"


def check_main(reports):
  """What must hold at N = 1000, B = 32, K = M = 1024 in bfloat16."""
  for name in ("product", "gradient"):
    for report in reports[name]:
      # Three programs a multiprocessor, and instructions for each weight.
      assert report["registers"] <= 160
      per_weight = report["loop"] * report["threads"] / TILE["bfloat16"]
      assert 0 < per_weight <= 4.6, report
      # x and weights by 16 bytes; a word a thread, or two, of the bits.
      assert sorted(set(report["copies"]))[-1] == 16
      assert sum(width == 16 for width in report["copies"]) >= 8
  for report in reports["step"]:
    assert report["registers"] <= 96


def test_the_main_shape(compile_env):
  reports = run(compile_env, COMPILE, "product", "gradient", "step")
  assert set(reports) == {"product", "gradient", "step"}
  check(reports)
  check_main(reports)


@pytest.mark.slow
def test_every_shape(compile_env):
  from fedjax_het_kernels.masked_matmul.specs import AOT

  names = [case[0] for case in AOT]
  reports = run(compile_env, COMPILE, *names)
  assert set(reports) == set(names)
  check(reports)


@pytest.mark.parametrize(
  "program, kernels",
  [("product", 1), ("gradients", 1), ("step", 1), ("seeds", 1)],
)
def test_programs_for_cuda_call_the_kernels(lowered, program, kernels):
  """The gradients need no product again: it is linear in each."""
  assert lowered[program] == kernels


@pytest.fixture(scope="module")
def lowered(compile_env):
  if importlib.util.find_spec("jax_cuda13_plugin") is None:
    pytest.skip("jax_cuda13_plugin, which has the launcher, is not installed")
  return run(compile_env, LOWER)
