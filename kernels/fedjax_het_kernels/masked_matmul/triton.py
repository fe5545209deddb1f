"""The kernels: a tile of weights is masked in registers, then multiplied.

  matmul      x[n] @ masked[n], and by its transpose for the gradient of x
  ste_update  the step of scores through their signs, with the new bits

Both take the weights as the left operand of `tl.dot`, so that Hopper's tensor
cores read them from registers, where they were masked.
"""

import triton
import triton.language as tl


@triton.jit
def matmul(
  x_ptr, weight_ptr, bit_ptr, out_ptr, B, K, M, R, I, XN,
  TRANSPOSED: tl.constexpr, SIGNED: tl.constexpr, EVEN: tl.constexpr,
  PRECISION: tl.constexpr, BB: tl.constexpr, BK: tl.constexpr,
  BM: tl.constexpr,
):  # fmt: skip
  """out[n] = x[n] @ v[n], v[n] = masked weights [K, M] or their transpose.

  x [N, B, R] -> out [N, B, I]: (R, I) is (K, M), or (M, K) if TRANSPOSED.  XN
  is the distance from one client's x to the next, 0 if all share it.  Bit j of
  bits[n, r] masks row 32 r + j.  Grid: blocks of I, of B, clients, the first
  fastest, so that neighbours share x and the same words of bits.
  """
  BI: tl.constexpr = BK if TRANSPOSED else BM
  BR: tl.constexpr = BM if TRANSPOSED else BK
  blocks_i = tl.cdiv(I, BI)
  blocks_b = tl.cdiv(B, BB)
  program = tl.program_id(0)
  first_i = program % blocks_i * BI
  rest = program // blocks_i
  first_b = rest % blocks_b * BB
  client = (rest // blocks_b).to(tl.int64)
  words = tl.cdiv(K, 32)
  k = tl.arange(0, BK)[:, None]
  w = tl.arange(0, BK // 32)[:, None]
  m = tl.arange(0, BM)[None, :]
  b = tl.arange(0, BB)[None, :]
  i = tl.arange(0, BI)[:, None]
  r = tl.arange(0, BR)[:, None]
  shift = tl.arange(0, 32)[None, :, None].to(tl.uint32)
  # Numbers of rows and columns that are left for this program.
  left_i, left_b = I - first_i, B - first_b
  x = x_ptr + client * XN + first_b.to(tl.int64) * R + b * R + r
  at = weight_ptr + k * M + m
  bits = bit_ptr + client * words * M + w * M + m
  if TRANSPOSED:
    at += first_i.to(tl.int64) * M
    bits += (first_i // 32).to(tl.int64) * M
  else:
    at += first_i
    bits += first_i
  acc = tl.zeros([BI, BB], tl.float32)
  for first_r in range(0, R, BR):
    if EVEN:
      right = tl.load(x)
      value = tl.load(at)
      word = tl.load(bits)
    else:
      left_r = R - first_r
      if TRANSPOSED:
        left_k, left_m = left_i, left_r
      else:
        left_k, left_m = left_r, left_i
      # A bound of 0 is an "and" (bool & bool is wrong when interpreted).
      right = tl.load(x, mask=r < tl.where(b < left_b, left_r, 0), other=0.0)
      inside = tl.where(m < left_m, left_k, 0)
      value = tl.load(at, mask=k < inside, other=0.0)
      word = tl.load(bits, mask=w * 32 < inside, other=0)
    bit = tl.reshape((word[:, None, :] >> shift) & 1, [BK, BM])
    if SIGNED:
      left = tl.where(bit != 0, value, -value)
    else:
      left = tl.where(bit != 0, value, 0.0)
    if not TRANSPOSED:
      left = tl.trans(left)
    acc = tl.dot(left, right, acc, input_precision=PRECISION)
    x += BR
    if TRANSPOSED:
      at += BM
      bits += BM
    else:
      at += BK * M
      bits += BK // 32 * M
  out = out_ptr + (client * B + first_b) * I + first_i + b * I + i
  acc = acc.to(out_ptr.dtype.element_ty)
  if EVEN:
    tl.store(out, acc)
  else:
    tl.store(out, acc, mask=i < tl.where(b < left_b, left_i, 0))


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
  inside = tl.where(m < left_m, left_k, 0)
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
      left = tl.load(
        x, mask=k < tl.where(b[None, :] < left_b, left_k, 0), other=0.0
      )
      right = tl.load(
        grad, mask=m < tl.where(b[:, None] < left_b, left_m, 0), other=0.0
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
    weight = tl.load(weight_ptr + place, mask=k < inside, other=0.0)
    score = tl.load(score_ptr + scores, mask=k < inside, other=0.0)
  step = tl.load(rate_ptr) * acc * weight.to(tl.float32)
  # The sign of the score as it is stored: rounding may make it -0.
  new = (score.to(tl.float32) - step).to(out_ptr.dtype.element_ty)
  shift = tl.arange(0, 32)[None, :, None].to(tl.uint32)
  if EVEN:
    tl.store(out_ptr + scores, new)
    ones = (new >= 0).to(tl.uint32)
  else:
    tl.store(out_ptr + scores, new, mask=k < inside)
    ones = ((new >= 0) & (k < left_k)).to(tl.uint32)
  word = tl.sum(tl.reshape(ones, [BK // 32, 32, BM]) << shift, axis=1)
  w = tl.arange(0, BK // 32)[:, None]
  words = tl.cdiv(K, 32)
  bits = bit_ptr + client * words * M + (first_k // 32).to(tl.int64) * M
  bits += first_m + w * M + m
  if EVEN:
    tl.store(bits, word.to(tl.uint32))
  else:
    tl.store(bits, word.to(tl.uint32), mask=w * 32 < inside)
