"""Triton kernels as JAX functions, through jaxlib's own launcher.

  op.py         Op: one primitive, plain JAX everywhere, Triton under CUDA
  call.py       triton_call: one launch, lowered to jaxlib's custom call
  compile.py    Launch, and triton.compile: signature, promises, PTX version
  interpret.py  Triton's interpreter on NumPy buffers, for tests

Nothing here imports triton before a kernel is lowered for CUDA or interpreted.
"""

from fedjax_het_kernels.bridge.call import (
  interprets,
  triton_call,
  triton_call_p,
)
from fedjax_het_kernels.bridge.compile import Launch, cuda_arch
from fedjax_het_kernels.bridge.op import Op

__all__ = [
  "Launch",
  "Op",
  "cuda_arch",
  "interprets",
  "triton_call",
  "triton_call_p",
]
