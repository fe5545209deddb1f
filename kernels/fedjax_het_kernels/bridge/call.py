"""`triton_call`: one launch of a Triton kernel as a JAX function.

jaxlib's CUDA plugin registers the FFI target `triton_kernel_call_ffi`, which
loads a kernel described by a serialised `TritonKernelCall` and launches it on
XLA's stream, inside CUDA graphs, too.  jax-triton sits on the same target.
"""

import functools
import math
import zlib
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from fedjax_het_kernels.bridge import compile as compiler
from fedjax_het_kernels.bridge.compile import Launch
from fedjax_het_kernels.bridge.interpret import interpret as run_interpreted

triton_call_p = Primitive("fedjax_het_triton_call")
triton_call_p.multiple_results = True


def triton_call(
  source: str,
  *arrays: jax.Array,
  outputs: tuple[jax.ShapeDtypeStruct, ...],
  grid: tuple[int, ...],
  constexprs: dict[str, Any] | None = None,
  scalars: dict[str, int | float] | None = None,
  num_warps: int = 4,
  num_stages: int = 3,
  zeroed: tuple[int, ...] = (),
  interpret: bool = False,
) -> tuple[jax.Array, ...]:
  """Launches a Triton kernel.

  Args:
    source: the `@triton.jit` function as "package.module:function"; imported
      when lowered or interpreted, not before.
    *arrays: the kernel's inputs, in its order of parameters.
    outputs: shapes and dtypes; their parameters follow those of the inputs.
    grid, constexprs, scalars, num_warps, num_stages, zeroed: see `Launch`.
    interpret: run it in Triton's interpreter on the host.

  Returns:
    The outputs.

  Raises:
    NotImplementedError: lowered for another platform than CUDA.
    ValueError, RuntimeError: as `interpret.interpret` and `compile.arch_of`.
  """
  launch = Launch(
    source,
    tuple(grid),
    tuple((constexprs or {}).items()),
    tuple((scalars or {}).items()),
    num_warps,
    num_stages,
    tuple(zeroed),
  )
  if interpret:
    return run_interpreted(launch, outputs, arrays)
  shapes = tuple((out.shape, out.dtype) for out in outputs)
  return tuple(triton_call_p.bind(*arrays, launch=launch, shapes=shapes))


def interprets(call) -> bool:
  """Whether an op's `call` runs interpreted, where assembly cannot."""
  return getattr(call, "keywords", {}).get("interpret", False)


@triton_call_p.def_impl
def _impl(*arrays, launch, shapes):
  return _compiled(launch, shapes)(*arrays)


@functools.lru_cache(maxsize=256)
def _compiled(launch, shapes):
  return jax.jit(
    lambda *arrays: triton_call_p.bind(*arrays, launch=launch, shapes=shapes)
  )


@triton_call_p.def_abstract_eval
def _abstract(*avals, launch, shapes):
  del avals, launch
  return [jax.core.ShapedArray(shape, dtype) for shape, dtype in shapes]


def _refuse(ctx, *operands, launch, shapes):
  del ctx, operands, shapes
  raise NotImplementedError(
    f"{launch.source}: a Triton kernel needs a CUDA device; give"
    ' implementation=None or "xla" here'
  )


def _lower_cuda(ctx, *operands, launch, shapes):
  del shapes
  from jaxlib import gpu_triton

  if not hasattr(gpu_triton, "TritonKernelCall"):
    raise NotImplementedError(
      f"{launch.source}: this jaxlib has no Triton launcher; install JAX's CUDA"
      ' plugin (pip install "fedjax-het[cuda]") or give implementation="xla"'
    )
  arch = compiler.arch_of(_devices(ctx))
  kernel, parameters = compiler.compile_kernel(
    launch, [*ctx.avals_in, *ctx.avals_out], arch
  )
  metadata = kernel.metadata
  if getattr(metadata, "global_scratch_size", 0):
    raise NotImplementedError(
      f"{launch.source}: needs global scratch memory, which jaxlib's launcher"
      " does not give"
    )
  image = gpu_triton.TritonKernel(
    metadata.name,
    metadata.num_warps,
    metadata.num_ctas,
    metadata.shared,
    kernel.asm["ptx"],
    "",
    arch,
  )
  to_zero = iter(
    [0] * len(ctx.avals_in)
    + [
      math.prod(aval.shape) * aval.dtype.itemsize if i in launch.zeroed else 0
      for i, aval in enumerate(ctx.avals_out)
    ]
  )
  arguments = [
    gpu_triton.create_array_parameter(next(to_zero), 16)
    if kind is None
    else gpu_triton.create_scalar_parameter(value, kind)
    for value, kind in parameters
  ]
  grid = (*launch.grid, 1, 1)[:3]
  call = gpu_triton.TritonKernelCall(image, *grid, arguments)
  rule = jax.ffi.ffi_lowering("triton_kernel_call_ffi", api_version=4)
  opaque = zlib.compress(call.to_proto(metadata.name, b""))
  return rule(ctx, *operands, opaque=opaque)


def _devices(ctx):
  """The devices that the program is lowered for, as far as JAX tells."""
  assigned = getattr(ctx.module_context.axis_context, "device_assignment", None)
  if assigned is not None:
    return [d for d in assigned if d.platform == "gpu"]
  try:
    return jax.local_devices(backend="cuda")
  except RuntimeError:  # lowering for CUDA on a machine without it
    return []


mlir.register_lowering(triton_call_p, _refuse)
mlir.register_lowering(triton_call_p, _lower_cuda, platform="cuda")
