"""The kernels: an atomic addition an entry, in float32 or in fixed point.

A program owns a stretch of one client's entries.
"""

import triton
import triton.language as tl


@triton.jit
def _entries(
  index_ptr, value_ptr, weight_ptr, K, PER_CLIENT, P, BLOCK: tl.constexpr
):
  """Indices, weight * value, and which are to be added."""
  program = tl.program_id(0)
  client = program // PER_CLIENT
  i = (program - client * PER_CLIENT) * BLOCK + tl.arange(0, BLOCK)
  # A bound of 0: nothing is read, NaN least of all, of a client without weight.
  bound = K
  if weight_ptr is not None:
    weight = tl.load(weight_ptr + client)
    bound = tl.where(weight != 0, K, 0)
  at = client.to(tl.int64) * K + i
  index = tl.load(index_ptr + at, mask=i < bound, other=-1)
  value = tl.load(value_ptr + at, mask=i < bound, other=0).to(tl.float32)
  if weight_ptr is not None:
    value = weight * value
  return index, value, (index >= 0) & (index < P)


@triton.jit
def add(
  index_ptr, value_ptr, weight_ptr, out_ptr, K, PER_CLIENT, P,
  BLOCK: tl.constexpr,
):  # fmt: skip
  """index, value [N, K], weight [N] to out f32[P], zeros at first.

  grid (N * PER_CLIENT,), PER_CLIENT = K / BLOCK rounded up.
  """
  index, value, inside = _entries(
    index_ptr, value_ptr, weight_ptr, K, PER_CLIENT, P, BLOCK
  )
  tl.atomic_add(out_ptr + index, value, mask=inside, sem="relaxed")


@triton.jit
def add_fixed(
  index_ptr, value_ptr, weight_ptr, scale_ptr, out_ptr, bad_ptr, K, PER_CLIENT,
  P, LIMIT: tl.constexpr, TINY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
  """As `add`, to int64 multiples of 1 / scale; out u32[P, 2], zeros at first.

  bad i32[1], zero at first: how many entries are NaN or beyond LIMIT.
  """
  index, value, inside = _entries(
    index_ptr, value_ptr, weight_ptr, K, PER_CLIENT, P, BLOCK
  )
  value = tl.where(tl.abs(value) < TINY, 0.0, value) * tl.load(scale_ptr)
  # Rounds to even: from 2^23 on every float32 is whole.
  size = tl.abs(value)
  size = tl.where(size < 8388608.0, (size + 8388608.0) - 8388608.0, size)
  good = size <= LIMIT
  whole = tl.where(good, size, 0.0).to(tl.int64)
  whole = tl.where(value < 0, -whole, whole)
  out = out_ptr.to(tl.pointer_type(tl.int64))
  tl.atomic_add(out + index, whole, mask=inside & good, sem="relaxed")
  ones = tl.full([BLOCK], 1, tl.int32)
  bad = inside & (good == 0)
  tl.atomic_add(bad_ptr + index * 0, ones, mask=bad, sem="relaxed")
