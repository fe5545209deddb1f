"""The kernels: a tile of weights is masked in registers, then multiplied.

  matmul      x[n] @ masked[n], and by its transpose for the gradient of x
  ste_update  the step of scores through their signs, with the new bits

`matmul` has the weights as the left operand of `tl.dot`, so that Hopper's
tensor cores read them from registers.
"""

import triton
import triton.language as tl

# Two 16-bit numbers $1 at once.  $2 holds 16 bits of the mask for each of them,
# $3 the shift 15 - j for each (both the same): rotated, bits j stand where the
# signs are.  NEGATE: $1 ^ (~t & 0x80008000); KEEP: $1 & the signs spread over
# their halves.
NEGATE = tl.constexpr("""{ .reg .b32 t;
  shf.l.wrap.b32 t, $2, $2, $3;
  lop3.b32 $0, $1, t, 0x80008000, 0xd2; }""")
KEEP = tl.constexpr("""{ .reg .b32 t;
  shf.l.wrap.b32 t, $2, $2, $3;
  prmt.b32 t, t, t, 0xbb99;
  and.b32 $0, $1, t; }""")


@triton.jit
def _masked(
  value, word, SIGNED: tl.constexpr, PAIRS: tl.constexpr, ASM: tl.constexpr
):
  """value [BK, BM], negated (SIGNED) or 0 where its bit of word is 0.

  PAIRS: the numbers have 16 bits, and ASM does two of them at once.
  """
  BK: tl.constexpr = value.shape[0]
  BM: tl.constexpr = value.shape[1]
  BITS: tl.constexpr = 16 if PAIRS else 32
  part = word
  if PAIRS:
    half = tl.arange(0, 2)[None, :, None].to(tl.uint32) * 16
    part = tl.reshape((word[:, None, :] >> half).to(tl.uint16), [BK // 16, BM])
  left = (BITS - 1) - tl.arange(0, BITS)[None, :, None]
  part, left = tl.broadcast(part[:, None, :], left.to(part.dtype))
  part, left = tl.reshape(part, [BK, BM]), tl.reshape(left, [BK, BM])
  if ASM:
    return tl.inline_asm_elementwise(
      NEGATE if SIGNED else KEEP, "=r,r,r,r", [value, part, left],
      dtype=value.dtype, is_pure=True, pack=2,
    )  # fmt: skip
  bit = (part >> ((BITS - 1) - left)) & 1
  return tl.where(bit != 0, value, -value if SIGNED else 0.0)


@triton.jit
def matmul(
  x_ptr, weight_ptr, bit_ptr, out_ptr, B, K, M, INNER, OUTER, XN,
  TRANSPOSED: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr,
  PAIRS: tl.constexpr, ASM: tl.constexpr, PRECISION: tl.constexpr,
  BB: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
  """out[n] = x[n] @ v[n], v[n] = masked weights [K, M] or their transpose.

  x [N, B, INNER] -> out [N, B, OUTER], which are K and M, or M and K if
  TRANSPOSED.  XN is the distance from one client's x to the next, 0 if all
  share it.  Bit j of bits[n, r] masks row 32 r + j.  Grid: blocks of OUTER, of
  B, clients, the first fastest, so that neighbours share x.
  """
  BO: tl.constexpr = BK if TRANSPOSED else BM
  BI: tl.constexpr = BM if TRANSPOSED else BK
  blocks_o = tl.cdiv(OUTER, BO)
  blocks_b = tl.cdiv(B, BB)
  program = tl.program_id(0)
  first_o = program % blocks_o * BO
  rest = program // blocks_o
  first_b = rest % blocks_b * BB
  client = (rest // blocks_b).to(tl.int64)
  k = tl.arange(0, BK)[:, None]
  m = tl.arange(0, BM)[None, :]
  row_of_words = tl.arange(0, BK // 32)[:, None]
  b = tl.arange(0, BB)[None, :]
  i = tl.arange(0, BI)[:, None]
  o = tl.arange(0, BO)[:, None]
  # How much is left from the first element of this program on.
  left_o, left_b = OUTER - first_o, B - first_b
  x = x_ptr + client * XN + first_b.to(tl.int64) * INNER + b * INNER + i
  at = weight_ptr + k * M + m
  words = bit_ptr + client * tl.cdiv(K, 32) * M + row_of_words * M + m
  if TRANSPOSED:
    at += first_o.to(tl.int64) * M
    words += (first_o // 32).to(tl.int64) * M
  else:
    at += first_o
    words += first_o
  sums = tl.zeros([BO, BB], tl.float32)
  for first_i in range(0, INNER, BI):
    if EVEN:
      right = tl.load(x)
      value = tl.load(at)
      word = tl.load(words)
    else:
      left_i = INNER - first_i
      if TRANSPOSED:
        left_k, left_m = left_o, left_i
      else:
        left_k, left_m = left_i, left_o
      right = tl.load(x, mask=(i < left_i) & (b < left_b), other=0.0)
      value = tl.load(at, mask=(k < left_k) & (m < left_m), other=0.0)
      inside = (row_of_words * 32 < left_k) & (m < left_m)
      word = tl.load(words, mask=inside, other=0)
    left = _masked(value, word, SIGNED, PAIRS, ASM)
    if not TRANSPOSED:
      left = tl.trans(left)
    sums = tl.dot(left, right, sums, input_precision=PRECISION)
    x += BI
    if TRANSPOSED:
      at += BM
      words += BM
    else:
      at += BK * M
      words += BK // 32 * M
  out = out_ptr + (client * B + first_b) * OUTER + first_o + b * OUTER + o
  sums = sums.to(out_ptr.dtype.element_ty)
  if EVEN:
    tl.store(out, sums)
  else:
    tl.store(out, sums, mask=(o < left_o) & (b < left_b))


@triton.jit
def ste_update(
  x_ptr, grad_ptr, weight_ptr, score_ptr, rate_ptr, out_ptr, bit_ptr,
  B, K, M, XN,
  EVEN: tl.constexpr, PRECISION: tl.constexpr, BB: tl.constexpr,
  BK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
  """out = score - rate * (x[n]^T grad[n]) * weight, and its signs.

  x [N, B, K], grad [N, B, M], scores [N, K, M]; grid: blocks of M, of K,
  clients, the first fastest.  The gradient [N, K, M] never reaches memory.
  """
  blocks_m = tl.cdiv(M, BM)
  blocks_k = tl.cdiv(K, BK)
  program = tl.program_id(0)
  first_m = program % blocks_m * BM
  rest = program // blocks_m
  first_k = rest % blocks_k * BK
  client = (rest // blocks_k).to(tl.int64)
  k = tl.arange(0, BK)[:, None]
  m = tl.arange(0, BM)[None, :]
  left_k, left_m = K - first_k, M - first_m
  inside = (k < left_k) & (m < left_m)
  acc = tl.zeros([BK, BM], tl.float32)
  x = x_ptr + client * XN + first_k + tl.arange(0, BB)[None, :] * K + k
  grad = grad_ptr + client * B * M + first_m + tl.arange(0, BB)[:, None] * M + m
  for first_b in range(0, B, BB):
    left_b = B - first_b
    if EVEN:
      left = tl.load(x)
      right = tl.load(grad)
    else:
      b = tl.arange(0, BB)
      left = tl.load(x, mask=(k < left_k) & (b[None, :] < left_b), other=0.0)
      right = tl.load(
        grad, mask=(b[:, None] < left_b) & (m < left_m), other=0.0
      )
    acc = tl.dot(left, right, acc, input_precision=PRECISION)
    x += BB * K
    grad += BB * M
  place = (first_k.to(tl.int64) * M + first_m) + k * M + m
  scores = client * K * M + place
  if EVEN:
    weight = tl.load(weight_ptr + place)
    score = tl.load(score_ptr + scores)
  else:
    weight = tl.load(weight_ptr + place, mask=inside, other=0.0)
    score = tl.load(score_ptr + scores, mask=inside, other=0.0)
  step = tl.load(rate_ptr) * acc * weight.to(tl.float32)
  # The sign of the score as it is stored: rounding may make it -0.
  new = (score.to(tl.float32) - step).to(out_ptr.dtype.element_ty)
  shift = tl.arange(0, 32)[None, :, None].to(tl.uint32)
  if EVEN:
    tl.store(out_ptr + scores, new)
    ones = (new >= 0).to(tl.uint32)
  else:
    tl.store(out_ptr + scores, new, mask=inside)
    ones = ((new >= 0) & (k < left_k)).to(tl.uint32)
  word = tl.sum(tl.reshape(ones, [BK // 32, 32, BM]) << shift, axis=1)
  w = tl.arange(0, BK // 32)[:, None]
  words = tl.cdiv(K, 32)
  bits = bit_ptr + client * words * M + (first_k // 32).to(tl.int64) * M
  bits += first_m + w * M + m
  if EVEN:
    tl.store(bits, word.to(tl.uint32))
  else:
    tl.store(bits, word.to(tl.uint32), mask=(w * 32 < left_k) & (m < left_m))
