"""Kernels of the bridge's own tests."""

import triton
import triton.language as tl


@triton.jit
def scale(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
  at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
  x = tl.load(x_ptr + at, mask=at < n)
  tl.store(y_ptr + at, x * factor, mask=at < n)


@triton.jit
def first_half(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
  """Forgets to write the second half."""
  at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
  tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < n), mask=at < n // 2)


@triton.jit
def count(index_ptr, out_ptr, n, BLOCK: tl.constexpr):
  """Adds to an output that has to start as zeros."""
  at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
  index = tl.load(index_ptr + at, mask=at < n, other=0)
  tl.atomic_add(out_ptr + index, (index >= 0).to(tl.int32), mask=at < n)
