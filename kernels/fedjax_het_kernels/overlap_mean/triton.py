"""The kernels.  No atomics: sums are added in one order, that of the entries.

  rows     a program owns a stretch of one row and walks the row's entries
  blocks   a program owns a tile and walks the clients that overlap it

Both end by dividing by the weight that was present, or by storing the sums.
"""

import triton
import triton.language as tl


@triton.jit
def _entry(sums, held, value_ptr, order_ptr, weight_ptr, e, C, columns):
  """Adds entry e of the index to the row's sums and weight."""
  t = tl.load(order_ptr + e)
  weight = tl.load(weight_ptr + t)
  # A bound of 0: nothing is read, NaN least of all, of a client without weight.
  value = tl.load(
    value_ptr + t.to(tl.int64) * C + columns,
    mask=columns < tl.where(weight != 0, C, 0),
    other=0,
  )
  return sums + weight * value.to(tl.float32), held + weight


@triton.jit
def rows(
  value_ptr, order_ptr, start_ptr, weight_ptr, old_ptr, out_ptr, held_ptr,
  QUOTIENT, STEP: tl.constexpr, BC: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
  """values [T, C] to [R, C]; grid (R, C / BC), C = QUOTIENT * STEP.

  The entries of row r are order[start[r]:start[r + 1]].  STEP is a power of
  two that divides C, at most 16: so the compiler knows how wide it may load.
  """
  C = QUOTIENT * STEP
  row = tl.program_id(0)
  columns = tl.program_id(1) * BC + tl.arange(0, BC)
  begin, end = tl.load(start_ptr + row), tl.load(start_ptr + row + 1)
  sums = tl.zeros([BC], tl.float32)
  held = 0.0
  full = begin + (end - begin) // UNROLL * UNROLL
  for first in range(begin, full, UNROLL):
    for u in tl.static_range(UNROLL):
      sums, held = _entry(
        sums, held, value_ptr, order_ptr, weight_ptr, first + u, C, columns
      )
  for e in range(full, end):
    sums, held = _entry(
      sums, held, value_ptr, order_ptr, weight_ptr, e, C, columns
    )
  at = row.to(tl.int64) * C + columns
  _finish(sums, held, old_ptr, out_ptr, at, columns < C)
  if old_ptr is None:
    tl.store(held_ptr + row, held, mask=tl.program_id(1) == 0)


@triton.jit
def _finish(sums, held, old_ptr, out_ptr, at, inside):
  """Stores the mean, or what was there where nobody holds it, or the sums."""
  if old_ptr is not None:
    old = tl.load(old_ptr + at, mask=inside, other=0)
    mean = sums / tl.where(held == 0, 1.0, held)
    sums = tl.where(held == 0, old, mean.to(old_ptr.dtype.element_ty))
  tl.store(out_ptr + at, sums, mask=inside)


@triton.jit
def _window(places, first, count, start, TOTAL, B: tl.constexpr):
  """Places in a window that begins at start, and if it meets the tile at all.

  The tile is first ... first + B - 1; the window goes on at 0 after TOTAL - 1.
  """
  places = places - start
  behind, ahead = first - start, start - first
  behind = tl.where(behind < 0, behind + TOTAL, behind)
  ahead = tl.where(ahead < 0, ahead + TOTAL, ahead)
  near = (behind < count) | (ahead < B)
  return tl.where(places < 0, places + TOTAL, places), near


@triton.jit
def blocks(
  value_ptr, row_ptr, col_ptr, row_start_ptr, col_start_ptr, weight_ptr,
  old_ptr, out_ptr, held_ptr, N, R, C, HEIGHT, QUOTIENT,
  STEP: tl.constexpr, FLAT: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
  """Blocks of N clients to [R, C]; grid (R / BR, C / BC).

  Client n holds row[n] x col[n] values.  Its rows lie QUOTIENT * STEP apart in
  values [N, HEIGHT, QUOTIENT * STEP]; in FLAT values they follow each other,
  padded to multiples of 4.
  """
  first_row = tl.program_id(0) * BR
  first_col = tl.program_id(1) * BC
  rows = first_row + tl.arange(0, BR)
  cols = first_col + tl.arange(0, BC)
  sums = tl.zeros([BR, BC], tl.float32)
  held = tl.zeros([BR, BC], tl.float32)
  offset = tl.zeros([], tl.int64)
  for n in range(0, N):
    count_r, count_c = tl.load(row_ptr + n), tl.load(col_ptr + n)
    weight = tl.load(weight_ptr + n)
    if FLAT:
      stride, height = (count_c + 3) // 4 * 4, count_r
    else:
      stride, height = QUOTIENT * STEP, HEIGHT
    i, near_r = rows, first_row < count_r
    if row_start_ptr is not None:
      start = tl.load(row_start_ptr + n)
      i, near_r = _window(rows, first_row, count_r, start, R, BR)
    j, near_c = cols, first_col < count_c
    reach = count_c
    if col_start_ptr is not None:
      start = tl.load(col_start_ptr + n)
      j, near_c = _window(cols, first_col, count_c, start, C, BC)
    else:
      if FLAT or STEP % 4 == 0:  # a wide load may touch the padding
        reach = (count_c + 3) // 4 * 4
    if near_r & near_c & (weight != 0):
      at = value_ptr + offset + i[:, None].to(tl.int64) * stride + j[None, :]
      loaded = (i < count_r)[:, None] & (j < reach)[None, :]
      value = tl.load(at, mask=loaded, other=0)
      inside = (i < count_r)[:, None] & (j < count_c)[None, :]
      sums += tl.where(inside, weight * value.to(tl.float32), 0.0)
      held += tl.where(inside, weight, 0.0)
    offset += height * stride
  at = rows[:, None].to(tl.int64) * C + cols[None, :]
  inside = (rows < R)[:, None] & (cols < C)[None, :]
  _finish(sums, held, old_ptr, out_ptr, at, inside)
  if old_ptr is None:
    tl.store(held_ptr + at, held, mask=inside)
