"""An op: one primitive, plain JAX everywhere, Triton under CUDA.

The choice falls when a program is lowered, so one traced function, and one
exported artefact, serves both.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_het_kernels.bridge.call import triton_call
from fedjax_het_kernels.dispatch import resolve


class Op:
  """Called as `op(*arrays, implementation=None, **static)`.

  It works under jit, vmap (one after the other: kernels have a client axis of
  their own), shard_map and grad (of `xla`; give a `jax.custom_vjp` where a
  kernel computes the gradient).

  Attributes:
    name: unique, for messages and dumps.
    xla: (*arrays, **static) -> tuple of arrays, in plain JAX.  It defines the
      outputs' shapes and dtypes, and runs wherever Triton does not.
    triton: (call, *arrays, **static) -> the same by Triton kernels; `call` is
      `triton_call`, on the GPU or interpreted.
  """

  def __init__(
    self,
    name: str,
    xla: Callable[..., tuple[jax.Array, ...]],
    triton: Callable[..., tuple[jax.Array, ...]],
  ):
    self.name, self.xla, self.triton = name, xla, triton
    self._primitive = _primitive(self)

  def __call__(
    self, *arrays: jax.Array, implementation: str | None = None, **static: Any
  ) -> tuple[jax.Array, ...]:
    """Runs the op.

    Args:
      *arrays: the inputs.
      implementation: see `dispatch.resolve`.
      **static: hashable parameters.

    Returns:
      The outputs, a tuple.

    Raises:
      ValueError: an unknown implementation; bfloat16 when interpreting.
      NotImplementedError: "triton" lowered for another platform than CUDA.
    """
    name = resolve(self.name, implementation)
    if name == "xla":
      return tuple(self.xla(*arrays, **static))
    if name == "interpret":
      call = functools.partial(triton_call, interpret=True)
      return tuple(self.triton(call, *arrays, **static))
    return tuple(
      self._primitive.bind(
        *arrays,
        static=tuple(sorted(static.items())),
        required=name == "triton",
      )
    )


def _primitive(op: Op) -> Primitive:
  primitive = Primitive(f"fedjax_het_{op.name}")
  primitive.multiple_results = True

  def xla(*arrays, static, required):
    del required
    return op.xla(*arrays, **dict(static))

  def triton(*arrays, static, required):
    del required
    return op.triton(triton_call, *arrays, **dict(static))

  @functools.lru_cache(maxsize=256)
  def compiled(static, required):
    return jax.jit(
      lambda *arrays: primitive.bind(*arrays, static=static, required=required)
    )

  @primitive.def_impl
  def impl(*arrays, static, required):
    return compiled(static, required)(*arrays)

  @primitive.def_abstract_eval
  def abstract(*avals, **params):
    # Traced, not declared: so the mesh axes that the outputs vary over under
    # shard_map are right, whatever JAX calls them in this version.
    return list(
      jax.make_jaxpr(functools.partial(xla, **params))(*avals).out_avals
    )

  def batch(arrays, dims, **params):
    arrays = [
      x if d is None else jnp.moveaxis(x, d, 0)
      for x, d in zip(arrays, dims, strict=True)
    ]

    def one(mapped):
      mapped = iter(mapped)
      return primitive.bind(
        *(
          x if d is None else next(mapped)
          for x, d in zip(arrays, dims, strict=True)
        ),
        **params,
      )

    outputs = lax.map(
      one,
      [x for x, d in zip(arrays, dims, strict=True) if d is not None],
    )
    return outputs, [0] * len(outputs)

  def jvp(primals, tangents, **params):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(functools.partial(xla, **params), tuple(primals), tangents)

  lower_xla = mlir.lower_fun(xla, multiple_results=True)
  lower_triton = mlir.lower_fun(triton, multiple_results=True)

  def lower(ctx, *operands, static, required):
    if required:
      raise NotImplementedError(
        f'{op.name}: implementation="triton" needs a CUDA device; give None or'
        ' "xla" here'
      )
    return lower_xla(ctx, *operands, static=static, required=required)

  def lower_cuda(ctx, *operands, static, required):
    installed = importlib.util.find_spec("triton") is not None
    if required and not installed:
      raise NotImplementedError(
        f'{op.name}: implementation="triton" needs triton: pip install'
        ' "fedjax-het[cuda]"'
      )
    rule = lower_triton if installed else lower_xla
    return rule(ctx, *operands, static=static, required=required)

  batching.primitive_batchers[primitive] = batch
  ad.primitive_jvps[primitive] = jvp
  mlir.register_lowering(primitive, lower)
  mlir.register_lowering(primitive, lower_cuda, platform="cuda")
  return primitive
