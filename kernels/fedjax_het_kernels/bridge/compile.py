"""From a Triton function and shapes to PTX; needs no GPU and no driver."""

import contextlib
import contextvars
import importlib
from typing import Any, NamedTuple

import numpy as np

_TYPES = {
  "bool": "i1", "bfloat16": "bf16", "float16": "fp16", "float32": "fp32",
  "float64": "fp64", "int8": "i8", "int16": "i16", "int32": "i32",
  "int64": "i64", "uint8": "u8", "uint16": "u16", "uint32": "u32",
  "uint64": "u64",
}  # fmt: skip
ALIGNED = [["tt.divisibility", 16]]

# What ptxas of CUDA 12.8 and later reads. Left alone, Triton 3.9 writes the
# ISA of the ptxas that it bundles (9.4), which that of CUDA 13.0 refuses.
PTX_VERSION = 87
# The newest architecture that PTX_VERSION knows; later ones get Triton's own.
PTX_VERSION_SUFFICES = 100

_arch = contextvars.ContextVar("cuda_arch", default=None)


class Launch(NamedTuple):
  """How one kernel is launched.

  source: the `@triton.jit` function as "package.module:function".
  grid: 1 to 3 numbers of programs.
  constexprs: names and values of the `tl.constexpr` parameters.
  scalars: names and values of the other parameters that are no arrays, all
    known when the program is lowered; 1 and multiples of 16 are specialised as
    Triton's own launcher does.
  num_warps, num_stages: as for `triton.Config`.
  zeroed: positions of the outputs to fill with zeros first.
  """

  source: str
  grid: tuple[int, ...]
  constexprs: tuple[tuple[str, Any], ...] = ()
  scalars: tuple[tuple[str, int | float], ...] = ()
  num_warps: int = 4
  num_stages: int = 3
  zeroed: tuple[int, ...] = ()


class Compiled(NamedTuple):
  """A kernel's machine code and the parameters that it is called with.

  kernel: what `triton.compile` returned; `.asm` has "ptx" and "cubin",
    `.metadata` the shared memory, warps and name.
  parameters: for each run-time parameter (None, None) if it is an array, else
    (value, Triton type).
  """

  kernel: Any
  parameters: tuple[tuple[int | float | None, str | None], ...]


def load(launch: Launch):
  """The `@triton.jit` function; imports triton."""
  module, _, name = launch.source.partition(":")
  return getattr(importlib.import_module(module), name)


def compile_kernel(launch: Launch, arrays, arch: int) -> Compiled:
  """Compiles a kernel.

  Args:
    launch: the function's parameters are scalars and constexprs by name, and
      between them the arrays in the order of `arrays`.
    arrays: shapes and dtypes of inputs, then outputs.
    arch: compute capability times ten, e.g. 90.

  Returns:
    A `Compiled`.

  Raises:
    ValueError: the function has fewer or more arrays than were given.
  """
  from triton.backends.compiler import GPUTarget
  from triton.compiler import ASTSource
  from triton.compiler import compile as triton_compile

  function = load(launch)
  constants, scalars = dict(launch.constexprs), dict(launch.scalars)
  signature, constexprs, promises, parameters = {}, {}, {}, []
  remaining = iter(arrays)
  for i, name in enumerate(function.arg_names):
    if name in constants:
      signature[name], constexprs[name] = "constexpr", constants[name]
    elif name not in scalars:
      array = next(remaining, None)
      if array is None:
        raise ValueError(f"{function.__name__}: no array for {name!r}")
      signature[name] = "*" + _TYPES[np.dtype(array.dtype).name]
      promises[(i,)] = ALIGNED  # XLA's buffers are
      parameters.append((None, None))
    else:
      value = scalars[name]
      if isinstance(value, int) and value == 1:
        signature[name], constexprs[name] = "constexpr", 1
        continue
      signature[name] = _scalar_type(value)
      if isinstance(value, int) and value % 16 == 0:
        promises[(i,)] = ALIGNED  # without it loads are 32 bits wide
      parameters.append((value, signature[name]))
  if next(remaining, None) is not None:
    raise ValueError(f"{function.__name__}: more arrays than parameters")
  options = {
    "num_warps": launch.num_warps,
    "num_stages": launch.num_stages,
    # Set, because the default changes between versions of Triton.
    "enable_fp_fusion": True,
  }
  if arch <= PTX_VERSION_SUFFICES:
    options["ptx_version"] = PTX_VERSION
  compiled = triton_compile(
    ASTSource(function, signature, constexprs, promises),
    target=GPUTarget("cuda", arch, 32),
    options=options,
  )
  return Compiled(compiled, tuple(parameters))


@contextlib.contextmanager
def cuda_arch(arch: int):
  """Lowers for this compute capability (x 10) on a machine without a GPU.

  >>> with cuda_arch(90):
  ...   jax.jit(f).trace(x).lower(lowering_platforms=("cuda",))
  """
  token = _arch.set(arch)
  try:
    yield
  finally:
    _arch.reset(token)


def arch_of(devices) -> int:
  """The compute capability (x 10) that all these devices have.

  Args:
    devices: CUDA devices of one program; a `cuda_arch` in force comes first.

  Raises:
    ValueError: they differ (jaxlib loads one image into all of them), or there
      is none.
  """
  if (forced := _arch.get()) is not None:
    return forced
  found = sorted({device.compute_capability for device in devices})
  if len(found) != 1:
    raise ValueError(
      f"a Triton kernel is compiled for one compute capability, and the"
      f" devices of this program have {found or 'none'}; run on equal GPUs,"
      ' give implementation="xla", or lower under bridge.cuda_arch(90)'
    )
  major, minor = found[0].split(".")
  return 10 * int(major) + int(minor)


def _scalar_type(value: int | float) -> str:
  if isinstance(value, float):
    return "fp32"
  return "i32" if -(2**31) <= value < 2**31 else "i64"
