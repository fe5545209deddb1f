"""The kernels.  Each program owns BT words of a planar tile (layout.py).

  select    float32 or int32 weights: an addition or subtraction a bit
  counts    uint8 or uint16 weights: four clients a dp4a, exact int32
  planes    no weights: carry-save counters of 8 planes, then
  finish    the planes' counts to an output
  clusters  several float32 weightings at once, on tensor cores

All but `planes` end in `_write`, which turns sums into what was asked for, so
that sums never travel through memory.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(plane, BT: tl.constexpr):
  """The program's words [BT], and its parameters in these planes [_, BT]."""
  first = tl.program_id(0) * BT
  words = first + tl.arange(0, BT)
  lanes = first % 128 + tl.arange(0, BT)
  tile = (first // 128).to(tl.int64)
  return words, tile * 4096 + plane[:, None] * 128 + lanes[None, :]


@triton.jit
def _write(
  sums, total, plane, row, W, P, rate_ptr, base_ptr, keep_ptr, out_ptr,
  OUTPUT: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
  """Sums [planes, BT] of weights that add up to total, to output row `row`.

  Stores "sum", "mean" and "step"; returns the share of these planes in the
  packed signs, u32[BT], which the kernel adds up for "majority" and "step".
  """
  words, parameters = _tile(plane, BT)
  kept = parameters < P
  inside = kept
  shift = plane[:, None].to(tl.uint32)
  if keep_ptr is not None:
    keep = tl.load(keep_ptr + words)[None, :]
    kept = inside & (((keep >> shift) & 1) != 0)
  at = row.to(tl.int64) * P + parameters
  if OUTPUT == "sum":
    if base_ptr is not None:
      sums += tl.load(base_ptr + at, mask=inside, other=0)
  elif OUTPUT != "majority":
    total = total.to(tl.float32)
    sums = sums.to(tl.float32) / tl.where(total == 0, 1.0, total)
    # Not maximum(minimum()): that may drop a NaN.
    sums = tl.where(sums > 1, 1.0, tl.where(sums < -1, -1.0, sums))
    sums = tl.where(total == 0, 0.0, sums)
    if OUTPUT == "step":
      base = tl.load(base_ptr + at, mask=inside, other=0.0)
      sums = base + tl.load(rate_ptr) * sums
  if OUTPUT != "majority":
    tl.store(out_ptr + at, tl.where(kept, sums, 0), mask=inside)
  ones = ((sums >= 0) & kept).to(tl.uint32) << shift
  return tl.sum(ones, axis=0).to(tl.uint32)


@triton.jit
def _write_packed(
  packed, row, W, packed_ptr, OUTPUT: tl.constexpr, BT: tl.constexpr
):
  if (OUTPUT == "majority") or (OUTPUT == "step"):
    words = tl.program_id(0) * BT + tl.arange(0, BT)
    tl.store(packed_ptr + row.to(tl.int64) * W + words, packed)


@triton.jit
def select(
  word_ptr, weight_ptr, total_ptr, rate_ptr, base_ptr, keep_ptr, out_ptr,
  packed_ptr, N, W, P,
  OUTPUT: tl.constexpr, BT: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
  """+w or -w a bit; words [N, W], weights [K, N]; grid (W / BT, K)."""
  plane = tl.arange(0, 32)
  shift = plane[:, None].to(tl.uint32)
  row = tl.program_id(1)
  weights = weight_ptr + row.to(tl.int64) * N
  sums = tl.zeros([32, BT], weight_ptr.dtype.element_ty)
  at = word_ptr + tl.program_id(0) * BT + tl.arange(0, BT)[None, :]
  full = N // UNROLL * UNROLL
  for first in range(0, full, UNROLL):
    for u in tl.static_range(UNROLL):
      word = tl.load(at)
      weight = tl.load(weights + first + u)
      sums += tl.where(((word >> shift) & 1) != 0, weight, -weight)
      at += W
  for n in range(full, N):
    word = tl.load(at)
    weight = tl.load(weights + n)
    sums += tl.where(((word >> shift) & 1) != 0, weight, -weight)
    at += W
  packed = _write(
    sums, tl.load(total_ptr + row), plane, row, W, P, rate_ptr, base_ptr,
    keep_ptr, out_ptr, OUTPUT, BT,
  )  # fmt: skip
  _write_packed(packed, row, W, packed_ptr, OUTPUT, BT)


@triton.jit
def _dp4a(a, b, c, ASM: tl.constexpr):
  """c + the sum over four unsigned bytes of a * b."""
  if ASM:
    return tl.inline_asm_elementwise(
      "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c],
      dtype=tl.uint32, is_pure=True, pack=1,
    )  # fmt: skip
  else:
    low = (a & 255) * (b & 255) + ((a >> 8) & 255) * ((b >> 8) & 255)
    high = ((a >> 16) & 255) * ((b >> 16) & 255) + (a >> 24) * (b >> 24)
    return c + low + high


@triton.jit
def _bytes(a, b, HIGH: tl.constexpr, ASM: tl.constexpr):
  """Bytes a0 b0 a1 b1, or a2 b2 a3 b3 if HIGH, of two words."""
  if ASM:
    if HIGH:
      return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x7362;", "=r,r,r", [a, b],
        dtype=tl.uint32, is_pure=True, pack=1,
      )  # fmt: skip
    else:
      return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x5140;", "=r,r,r", [a, b],
        dtype=tl.uint32, is_pure=True, pack=1,
      )  # fmt: skip
  else:
    if HIGH:
      a = a >> 16
      b = b >> 16
    low = (a & 0xFF) | ((b & 0xFF) << 8)
    return low | ((a & 0xFF00) << 8) | ((b & 0xFF00) << 16)


@triton.jit
def _halves(a, b, HIGH: tl.constexpr, ASM: tl.constexpr):
  """The low halves of two words, or the high ones, as one word."""
  if ASM:
    if HIGH:
      return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x7632;", "=r,r,r", [a, b],
        dtype=tl.uint32, is_pure=True, pack=1,
      )  # fmt: skip
    else:
      return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, $2, 0x5410;", "=r,r,r", [a, b],
        dtype=tl.uint32, is_pure=True, pack=1,
      )  # fmt: skip
  else:
    if HIGH:
      return (a >> 16) | (b & 0xFFFF0000)
    else:
      return (a & 0xFFFF) | (b << 16)


@triton.jit
def _transpose(x0, x1, x2, x3, ASM: tl.constexpr):
  """Four words to four words: byte b of each, side by side, for b = 0..3."""
  even01 = _bytes(x0, x1, False, ASM)
  even23 = _bytes(x2, x3, False, ASM)
  odd01 = _bytes(x0, x1, True, ASM)
  odd23 = _bytes(x2, x3, True, ASM)
  y0 = _halves(even01, even23, False, ASM)
  y1 = _halves(even01, even23, True, ASM)
  y2 = _halves(odd01, odd23, False, ASM)
  y3 = _halves(odd01, odd23, True, ASM)
  return y0, y1, y2, y3


@triton.jit
def _count(
  x0, x1, x2, x3, pick, low_ptr, high_ptr, a0, a1, a2, a3, b0, b1, b2, b3,
  ASM: tl.constexpr,
):  # fmt: skip
  """Adds four clients' weights where their bits are 1."""
  y0, y1, y2, y3 = _transpose(x0, x1, x2, x3, ASM)
  y0, y1, y2, y3 = y0 & pick, y1 & pick, y2 & pick, y3 & pick
  low = tl.load(low_ptr)
  a0, a1 = _dp4a(y0, low, a0, ASM), _dp4a(y1, low, a1, ASM)
  a2, a3 = _dp4a(y2, low, a2, ASM), _dp4a(y3, low, a3, ASM)
  if high_ptr is not None:
    high = tl.load(high_ptr)
    b0, b1 = _dp4a(y0, high, b0, ASM), _dp4a(y1, high, b1, ASM)
    b2, b3 = _dp4a(y2, high, b2, ASM), _dp4a(y3, high, b3, ASM)
  return a0, a1, a2, a3, b0, b1, b2, b3


@triton.jit
def counts(
  word_ptr, low_ptr, high_ptr, total_ptr, rate_ptr, base_ptr, keep_ptr,
  out_ptr, packed_ptr, N, W, P, GROUPS,
  OUTPUT: tl.constexpr, BT: tl.constexpr, UNROLL: tl.constexpr,
  ASM: tl.constexpr,
):  # fmt: skip
  """Integer weights, four clients a group; grid (W / BT, K).

  low, high u32[K, GROUPS]: the weights' low and high bytes, four clients a word
  and 0 past the last client; high is None for weights below 256.  Transposing
  the bytes of four clients' words puts the same 8 parameters of each side by
  side; a mask picks one parameter, and dp4a adds the four weights.
  """
  row = tl.program_id(1)
  shift = tl.arange(0, 8)[:, None].to(tl.uint32)
  pick = tl.full([8, 1], 0x01010101, tl.uint32) << shift
  zero = tl.zeros([8, BT], tl.uint32)
  a0, a1, a2, a3 = zero, zero, zero, zero
  b0, b1, b2, b3 = zero, zero, zero, zero
  at = word_ptr + tl.program_id(0) * BT + tl.arange(0, BT)[None, :]
  low = low_ptr + row * GROUPS
  high = high_ptr
  if high_ptr is not None:
    high = high_ptr + row * GROUPS
  full = N // (4 * UNROLL) * UNROLL
  for _ in range(0, full, UNROLL):
    for _ in tl.static_range(UNROLL):
      x0, x1 = tl.load(at), tl.load(at + W)
      x2, x3 = tl.load(at + 2 * W), tl.load(at + 3 * W)
      a0, a1, a2, a3, b0, b1, b2, b3 = _count(
        x0, x1, x2, x3, pick, low, high, a0, a1, a2, a3, b0, b1, b2, b3, ASM
      )
      at += 4 * W
      low += 1
      if high_ptr is not None:
        high += 1
  for n in range(full * 4, N, 4):
    # Past the end this group's first client is read again, with weight 0.
    x0 = tl.load(at)
    x1 = tl.load(at + tl.where(n + 1 < N, W, 0))
    x2 = tl.load(at + tl.where(n + 2 < N, 2 * W, 0))
    x3 = tl.load(at + tl.where(n + 3 < N, 3 * W, 0))
    a0, a1, a2, a3, b0, b1, b2, b3 = _count(
      x0, x1, x2, x3, pick, low, high, a0, a1, a2, a3, b0, b1, b2, b3, ASM
    )
    at += 4 * W
    low += 1
    if high_ptr is not None:
      high += 1
  total = tl.load(total_ptr + row)
  packed = tl.zeros([BT], tl.uint32)
  for byte in tl.static_range(4):
    if byte == 0:
      ones = (a0 >> shift) + ((b0 >> shift) << 8)
    elif byte == 1:
      ones = (a1 >> shift) + ((b1 >> shift) << 8)
    elif byte == 2:
      ones = (a2 >> shift) + ((b2 >> shift) << 8)
    else:
      ones = (a3 >> shift) + ((b3 >> shift) << 8)
    packed += _write(
      2 * ones.to(tl.int32) - total, total, byte * 8 + tl.arange(0, 8), row, W,
      P, rate_ptr, base_ptr, keep_ptr, out_ptr, OUTPUT, BT,
    )  # fmt: skip
  _write_packed(packed, row, W, packed_ptr, OUTPUT, BT)


@triton.jit
def _add(a, b, c):
  """A full adder on 32 bits at once: sum and carry."""
  half = a ^ b
  return half ^ c, (a & b) | (half & c)


@triton.jit
def planes(
  word_ptr, plane_ptr, N, W, CHUNK: tl.constexpr, BW: tl.constexpr
):  # fmt: skip
  """How many of a chunk's clients say +1, as 8 bit planes.

  words [N, W] -> planes u32[S, 8, W] of S = N / CHUNK chunks of at most 248
  clients; grid (W / BW, S).  Eight clients cost 7 full adders, which is 14
  three-input logic operations for 256 bits.
  """
  words = tl.program_id(0) * BW + tl.arange(0, BW)
  inside = words < W
  chunk = tl.program_id(1)
  zero = tl.zeros([BW], tl.uint32)
  c0, c1, c2, c3 = zero, zero, zero, zero
  c4, c5, c6, c7 = zero, zero, zero, zero
  begin = chunk * CHUNK
  end = tl.minimum(begin + CHUNK, N)
  at = word_ptr + begin.to(tl.int64) * W + words
  for n in range(begin, end, 8):
    x0 = tl.load(at, mask=inside, other=0)
    # A bound of 0 masks a row past the end (bool & bool is wrong when
    # interpreted).
    x1 = tl.load(at + W, mask=words < tl.where(n + 1 < end, W, 0), other=0)
    x2 = tl.load(at + 2 * W, mask=words < tl.where(n + 2 < end, W, 0), other=0)
    x3 = tl.load(at + 3 * W, mask=words < tl.where(n + 3 < end, W, 0), other=0)
    x4 = tl.load(at + 4 * W, mask=words < tl.where(n + 4 < end, W, 0), other=0)
    x5 = tl.load(at + 5 * W, mask=words < tl.where(n + 5 < end, W, 0), other=0)
    x6 = tl.load(at + 6 * W, mask=words < tl.where(n + 6 < end, W, 0), other=0)
    x7 = tl.load(at + 7 * W, mask=words < tl.where(n + 7 < end, W, 0), other=0)
    c0, d0 = _add(c0, x0, x1)
    c0, d1 = _add(c0, x2, x3)
    c1, e0 = _add(c1, d0, d1)
    c0, d0 = _add(c0, x4, x5)
    c0, d1 = _add(c0, x6, x7)
    c1, e1 = _add(c1, d0, d1)
    c2, carry = _add(c2, e0, e1)
    c3, carry = c3 ^ carry, c3 & carry
    c4, carry = c4 ^ carry, c4 & carry
    c5, carry = c5 ^ carry, c5 & carry
    c6, carry = c6 ^ carry, c6 & carry
    c7 = c7 ^ carry
    at += 8 * W
  out = plane_ptr + chunk.to(tl.int64) * 8 * W + words
  tl.store(out, c0, mask=inside)
  tl.store(out + W, c1, mask=inside)
  tl.store(out + 2 * W, c2, mask=inside)
  tl.store(out + 3 * W, c3, mask=inside)
  tl.store(out + 4 * W, c4, mask=inside)
  tl.store(out + 5 * W, c5, mask=inside)
  tl.store(out + 6 * W, c6, mask=inside)
  tl.store(out + 7 * W, c7, mask=inside)


@triton.jit
def finish(
  plane_ptr, rate_ptr, base_ptr, keep_ptr, out_ptr, packed_ptr, N, W, P, S,
  OUTPUT: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
  """planes [S, 8, W] of N clients to an output; grid (W / BT,)."""
  plane = tl.arange(0, 32)
  shift = plane[:, None].to(tl.uint32)
  ones = tl.zeros([32, BT], tl.int32)
  at = plane_ptr + tl.program_id(0) * BT + tl.arange(0, BT)[None, :]
  for _ in range(0, S):
    for k in tl.static_range(8):
      ones += (((tl.load(at) >> shift) & 1) << k).to(tl.int32)
      at += W
  row = tl.program_id(1)  # the only one
  total = tl.zeros([1, 1], tl.int32) + N
  sums = 2 * ones - N
  if base_ptr is not None:
    # Votes so far may be float32; whole numbers stay exact to 2^24.
    sums = sums.to(base_ptr.dtype.element_ty)
  packed = _write(
    sums, total, plane, row, W, P, rate_ptr, base_ptr, keep_ptr, out_ptr,
    OUTPUT, BT,
  )  # fmt: skip
  _write_packed(packed, row, W, packed_ptr, OUTPUT, BT)


@triton.jit
def clusters(
  word_ptr, split_ptr, out_ptr, N, W, P, K,
  BK: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
  """K weightings at once on tensor cores; grid (W / BT, 32 / PLANES).

  split f32[3, BK, N]: the weights as three terms of 11 bits, zeros past K, so
  that every product of tf32 operands is exact and only the sums round.
  """
  first = tl.program_id(0) * BT
  plane = tl.program_id(1) * PLANES + tl.arange(0, PLANES)
  shift = plane[None, :, None].to(tl.uint32)
  k = tl.arange(0, BK)[:, None]
  client = tl.arange(0, BN)
  sums = tl.zeros([BK, PLANES * BT], tl.float32)
  for begin in range(0, N, BN):
    n = begin + client
    at = word_ptr + n[:, None].to(tl.int64) * W + first
    word = tl.load(at + tl.arange(0, BT)[None, :], mask=n[:, None] < N, other=0)
    bits = tl.reshape((word[:, None, :] >> shift) & 1, [BN, PLANES * BT])
    signs = tl.where(bits != 0, 1.0, -1.0)
    for term in tl.static_range(3):
      weight = tl.load(
        split_ptr + (term * BK + k) * N + n[None, :],
        mask=n[None, :] < N,
        other=0.0,
      )
      sums = tl.dot(weight, signs, sums, input_precision="tf32")
  lanes = first % 128 + tl.arange(0, BT)
  tile = (first // 128).to(tl.int64)
  parameters = tl.reshape(
    tile * 4096 + plane[:, None] * 128 + lanes[None, :], [1, PLANES * BT]
  )
  tl.store(
    out_ptr + k.to(tl.int64) * P + parameters,
    sums,
    mask=parameters < tl.where(k < K, P, 0),
  )
