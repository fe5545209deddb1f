"""Triton's interpreter on NumPy buffers, called from JAX; needs no torch.

It checks values and addresses, not speed: about 2 ms a program.  Outputs start
as NaN (floats) or a bit pattern of ones, so an element that no program writes
shows.
"""

import importlib.metadata
import os
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het_kernels.bridge import compile as compiler

VARIABLE = "TRITON_INTERPRET"
_LOCK = (
  threading.Lock()
)  # the interpreter patches triton.language while it runs


def interpret(launch, outputs, arrays) -> tuple[jax.Array, ...]:
  """Runs a kernel on the host, under any JAX transformation but grad.

  Args:
    launch: a `compile.Launch`.
    outputs: shapes and dtypes.
    arrays: the inputs.

  Raises:
    ValueError: an input or output is bfloat16, which Triton's interpreter
      computes on as if it were uint16, without a word.
    RuntimeError: triton is missing, was imported without TRITON_INTERPRET=1, or
      does not work with this NumPy.
  """
  for array in (*arrays, *outputs):
    if array.dtype == jnp.bfloat16:
      raise ValueError(
        f"{launch.source}: the interpreter is silently wrong on bfloat16; test"
        " in float32 or float16"
      )
  check_environment()

  def host(*values):
    buffers = [np.array(value, order="C") for value in values]
    results = [
      poisoned(out, zeroed=i in launch.zeroed) for i, out in enumerate(outputs)
    ]
    run(launch, [*buffers, *results])
    return tuple(results)

  return jax.pure_callback(host, outputs, *arrays, vmap_method="sequential")


def run(launch, arrays) -> None:
  """Runs a kernel in place on NumPy arrays: inputs, then outputs."""
  function = compiler.load(launch)
  constants, scalars = dict(launch.constexprs), dict(launch.scalars)
  remaining = iter(arrays)
  arguments = dict(constants)
  for name in function.arg_names:
    if name in scalars:
      arguments[name] = scalars[name]
    elif name not in constants:
      arguments[name] = _Tensor(next(remaining))
  with _LOCK:
    function[launch.grid](**arguments)


def poisoned(out, zeroed: bool) -> np.ndarray:
  """An output buffer in which an unwritten element shows."""
  if zeroed:
    return np.zeros(out.shape, out.dtype)
  if jnp.issubdtype(out.dtype, jnp.floating):
    return np.full(out.shape, np.nan, out.dtype)
  if out.dtype == jnp.bool_:
    return np.ones(out.shape, out.dtype)
  return np.full(out.shape, np.iinfo(out.dtype).max, out.dtype)


def check_environment() -> None:
  """Raises RuntimeError where the interpreter cannot work."""
  if os.environ.get(VARIABLE) != "1":
    done = "triton" in sys.modules
    raise RuntimeError(
      f"interpreting needs {VARIABLE}=1 in the environment before triton is"
      f" imported{', which it already is' if done else ''}; start the process"
      " with it"
    )
  try:
    version = importlib.metadata.version("triton")
  except importlib.metadata.PackageNotFoundError:
    raise RuntimeError(
      "interpreting needs triton: pip install triton"
    ) from None
  if _numbers(version) < (3, 7) and _numbers(np.__version__) >= (2, 4):
    raise RuntimeError(
      f"the interpreter of triton {version} fails with NumPy {np.__version__};"
      " it needs triton 3.7 or NumPy below 2.4"
    )


def _numbers(version: str) -> tuple[int, ...]:
  return tuple(int(part) for part in version.split(".")[:2])


class _Storage:
  def __init__(self, array):
    self.array = array

  def data_ptr(self):
    return self.array.ctypes.data

  def cpu(self):  # already on the host
    return self

  def copy_(self, other):  # the same memory: nothing to copy back
    del other


class _Tensor:
  """The methods of a torch.Tensor that Triton's interpreter calls."""

  def __init__(self, array):
    self.array = array

  @property
  def dtype(self):
    return "i1" if self.array.dtype == bool else self.array.dtype.name

  def data_ptr(self):
    return self.array.ctypes.data

  def untyped_storage(self):
    return _Storage(self.array)

  def new_empty(self, *args, **kwargs):
    del args, kwargs
    return _Tensor(self.array)

  def set_(self, *args):
    del args
    return self

  def storage_offset(self):
    return 0

  def size(self):
    return self.array.shape

  def stride(self):
    return tuple(s // self.array.itemsize for s in self.array.strides)
