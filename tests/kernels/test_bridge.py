"""The bridge on a CPU: which implementation runs, values, errors."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het_kernels.bridge import Op, interpret, triton_call
from fedjax_het_kernels.bridge import compile as compiler

VALUES = np.linspace(-3, 3, 37, dtype=np.float32)


def launch(call, x, *, factor):
  return call(
    "tiny_triton:scale",
    x,
    outputs=(jax.ShapeDtypeStruct(x.shape, x.dtype),),
    grid=(-(-x.size // 16),),
    constexprs={"BLOCK": 16},
    scalars={"n": x.size, "factor": factor},
  )


SCALE = Op("scale", lambda x, *, factor: (x * factor,), launch)


@pytest.mark.parametrize("implementation", [None, "xla", "interpret"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_implementations_agree(interpreter, implementation, transform):
  run = transform(
    lambda x: SCALE(x, factor=2.5, implementation=implementation)[0]
  )
  np.testing.assert_allclose(run(VALUES), 2.5 * VALUES, rtol=1e-6)


@pytest.mark.parametrize("implementation", [None, "interpret"])
def test_vmap(interpreter, implementation):
  rows = np.stack([VALUES, -VALUES, 3 * VALUES], axis=1)  # mapped axis is 1
  run = jax.vmap(
    lambda x: SCALE(x, factor=0.5, implementation=implementation)[0],
    in_axes=1,
  )
  np.testing.assert_allclose(run(rows), 0.5 * rows.T, rtol=1e-6)


def test_gradient_is_that_of_plain_jax():
  grad = jax.grad(lambda x: (SCALE(x, factor=2.0)[0] ** 2).sum())(VALUES)
  np.testing.assert_allclose(grad, 8 * VALUES, rtol=1e-6)


def test_default_follows_the_environment(monkeypatch):
  monkeypatch.setenv("FEDJAX_HET_KERNELS", "triton")
  with pytest.raises(NotImplementedError, match="needs a CUDA device"):
    SCALE(VALUES, factor=2.0)
  np.testing.assert_array_equal(
    SCALE(VALUES, factor=2.0, implementation="xla")[0], 2 * VALUES
  )
  monkeypatch.setenv("FEDJAX_HET_KERNELS", "cuda")
  with pytest.raises(ValueError, match="unknown FEDJAX_HET_KERNELS 'cuda'"):
    SCALE(VALUES, factor=2.0)


def test_triton_on_a_cpu_is_refused():
  with pytest.raises(NotImplementedError, match="scale: .*CUDA device"):
    jax.jit(lambda x: SCALE(x, factor=2.0, implementation="triton"))(VALUES)
  with pytest.raises(NotImplementedError, match="tiny_triton:scale"):
    launch(triton_call, jnp.asarray(VALUES), factor=2.0)


def test_a_cpu_run_does_not_import_triton(source_env):
  """Neither on import nor when the default implementation runs."""
  code = """
import sys, numpy as np, fedjax_het_kernels as kernels
words = kernels.pack_signs(np.ones((3, 50), np.float32))
assert float(kernels.sign_votes(words, size=50).sum()) == 50
sys.exit("triton" in sys.modules)
"""
  done = subprocess.run([sys.executable, "-c", code], env=source_env)
  assert done.returncode == 0


def interpreted(name, x, dtype=None, zeroed=()):
  return triton_call(
    f"tiny_triton:{name}",
    x,
    outputs=(jax.ShapeDtypeStruct(x.shape, dtype or x.dtype),),
    grid=(-(-x.size // 16),),
    constexprs={"BLOCK": 16},
    scalars={"n": x.size},
    zeroed=zeroed,
    interpret=True,
  )[0]


def test_what_a_kernel_does_not_write_shows(interpreter):
  out = np.asarray(interpreted("first_half", jnp.asarray(VALUES)))
  np.testing.assert_array_equal(out[:18], VALUES[:18])
  assert np.isnan(out[18:]).all()
  out = np.asarray(interpreted("first_half", jnp.arange(37)))
  assert (out[18:] == np.iinfo(np.int32).max).all()


def test_zeroed_outputs(interpreter):
  index = jnp.asarray(np.random.default_rng(0).integers(0, 37, 37, np.int32))
  out = interpreted("count", index, zeroed=(0,))
  np.testing.assert_array_equal(out, np.bincount(index, minlength=37))


def test_bfloat16_is_refused(interpreter):
  x = jnp.ones(16, jnp.bfloat16)
  with pytest.raises(ValueError, match="silently wrong on bfloat16"):
    interpreted("first_half", x)


def test_interpreting_needs_the_variable(monkeypatch):
  monkeypatch.delenv("TRITON_INTERPRET")
  with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
    interpreted("first_half", jnp.asarray(VALUES))


def test_old_interpreter_is_named(monkeypatch):
  monkeypatch.setattr(
    interpret.importlib.metadata, "version", lambda name: "3.6.0"
  )
  monkeypatch.setattr(interpret.np, "__version__", "2.4.1")
  with pytest.raises(RuntimeError, match=r"triton 3\.6\.0 fails with NumPy"):
    interpret.check_environment()


class Device:
  def __init__(self, capability):
    self.compute_capability = capability


def test_compute_capability():
  assert compiler.arch_of([Device("9.0"), Device("9.0")]) == 90
  assert compiler.arch_of([Device("12.1")]) == 121
  with pytest.raises(ValueError, match=r"\['8.0', '9.0'\].*equal GPUs"):
    compiler.arch_of([Device("9.0"), Device("8.0")])
  with pytest.raises(ValueError, match="none"):
    compiler.arch_of([])
  with compiler.cuda_arch(80):
    assert compiler.arch_of([]) == 80
