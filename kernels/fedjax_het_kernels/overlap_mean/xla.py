"""Overlap sums in plain JAX.

On a CPU the quickest form is the plainest: a loop that adds one row of one
client at a time to the sums, which stay in cache.  XLA:CPU compiles it to
vector code at 0.2 us a row and no temporary; rows unrolled by hand, gathers
through an index and scatters are all slower (measured, jax 0.10.2).  On other
platforms such a loop would launch a kernel a row, so there it is one scatter,
or one reduction over clients.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

TILE = 1024  # columns a step of the loop over blocks; 0.2 us each
FLAT_STEP = 4  # rows of flattened blocks begin at multiples of this


def rows(
  *arrays: jax.Array, fields: tuple[str, ...], count: int
) -> tuple[jax.Array, ...]:
  """The op: see `op.ROWS`."""
  given = dict(zip(fields, arrays, strict=True))
  ids = _padding_last(given["ids"], count)
  weights = jnp.where(ids < count, given["weights"], jnp.float32(0))
  total = row_totals(given["values"], ids, weights, count)
  held = jnp.zeros(count, jnp.float32).at[ids].add(weights, mode="drop")
  if "old" not in given:
    return total, held
  return (finish(total, held[:, None], given["old"]),)


def blocks(
  *arrays: jax.Array, fields: tuple[str, ...], shape: tuple[int, int]
) -> tuple[jax.Array, ...]:
  """The op: see `op.BLOCKS`."""
  given = dict(zip(fields, arrays, strict=True))
  weights = given["weights"]
  rows, cols = given["rows"], given["cols"]
  windows = rows, cols, given.get("row_start"), given.get("col_start")
  total = block_totals(given["values"], *windows, weights, shape)
  in_rows, _, in_cols, _ = _within(*windows, shape)
  shares = jnp.where(in_rows, weights[:, None], jnp.float32(0))
  held = jnp.matmul(
    shares.T, in_cols.astype(jnp.float32), precision=lax.Precision.HIGHEST
  )
  if "old" not in given:
    return total, held
  return (finish(total, held, given["old"]),)


def finish(total: jax.Array, held: jax.Array, old: jax.Array) -> jax.Array:
  """total / held, and old where nothing is held, in the dtype of old."""
  # Not held > 0: a NaN weight has to show.
  nobody = held == 0
  mean = total / jnp.where(nobody, jnp.float32(1), held)
  return jnp.where(nobody, old, mean.astype(old.dtype))


def row_index(ids: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """Entries sorted by row, i32[T], and where each row's begin, i32[R + 1]."""
  ids = _padding_last(ids, count)
  order = jnp.argsort(ids, stable=True).astype(jnp.int32)
  rows = jnp.arange(count + 1, dtype=jnp.int32)
  # Unrolled it is one kernel on a GPU, as a loop it is 17.
  starts = jnp.searchsorted(ids[order], rows, method="scan_unrolled")
  return order, starts.astype(jnp.int32)


def _padding_last(ids, count):
  """Ids with `count` for those that are no row."""
  return jnp.where((ids >= 0) & (ids < count), ids, jnp.int32(count))


def layout(rows, cols):
  """Offset and row stride of each client in flattened blocks, i32[N]."""
  stride = -(-cols // FLAT_STEP) * FLAT_STEP
  ends = jnp.cumsum(rows * stride, dtype=jnp.int32)
  return ends - rows * stride, stride


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def row_totals(values, ids, weights, count):
  """sum of weights[t] * values[t] over the entries t of each row, f32."""
  if values.size == 0 or count == 0:
    return jnp.zeros((count, values.shape[1]), jnp.float32)
  return lax.platform_dependent(
    values,
    ids,
    weights,
    cpu=functools.partial(_walk_rows, count=count),
    default=functools.partial(_scatter_rows, count=count),
  )


@row_totals.defjvp
def _row_totals_jvp(count, primals, tangents):
  scatter = functools.partial(_scatter_rows, count=count)
  _, tangent = jax.jvp(scatter, primals, tangents)  # the loop has no transpose
  return row_totals(*primals, count), tangent


def _walk_rows(values, ids, weights, *, count):
  def add(t, total):
    weight = lax.dynamic_index_in_dim(weights, t, keepdims=False)
    row = lax.dynamic_index_in_dim(ids, t, keepdims=False)
    value = lax.dynamic_index_in_dim(values, t).astype(jnp.float32)
    # A client without weight may have sent NaN.
    term = jnp.where(weight == 0, jnp.float32(0), weight * value)
    sums = lax.dynamic_index_in_dim(total, row)  # padding: any, it adds 0
    return lax.dynamic_update_index_in_dim(total, sums + term, row, 0)

  start = varying_zeros((count, values.shape[1]), values, ids, weights)
  return lax.fori_loop(0, ids.size, add, start)


def _scatter_rows(values, ids, weights, *, count):
  terms = weights[:, None] * finite_if_absent(values, weights)
  zeros = jnp.zeros((count, values.shape[1]), jnp.float32)
  return zeros.at[ids].add(terms, mode="drop")


@functools.partial(jax.custom_jvp, nondiff_argnums=(6,))
def block_totals(values, rows, cols, row_start, col_start, weights, shape):
  """sum of weights[n] * values[n] over the clients that hold it, f32[R, C]."""
  if values.size == 0 or 0 in shape:
    return jnp.zeros(shape, jnp.float32)
  return lax.platform_dependent(
    values,
    rows,
    cols,
    row_start,
    col_start,
    weights,
    cpu=functools.partial(_walk_blocks, shape=shape),
    default=functools.partial(_reduce_blocks, shape=shape),
  )


@block_totals.defjvp
def _block_totals_jvp(shape, primals, tangents):
  reduce = functools.partial(_reduce_blocks, shape=shape)
  _, tangent = jax.jvp(reduce, primals, tangents)
  return block_totals(*primals, shape), tangent


def _walk_blocks(values, rows, cols, row_start, col_start, weights, *, shape):
  """Row by row; a tile is a slice of one row of one client.

  A slice near the end of the buffer begins `early` to stay inside, hence a
  margin before the sums.  A window that passes the last column goes on behind
  it, and is folded back at the end.
  """
  height, width = shape
  flat = values.ndim == 1
  if flat:
    offsets, stride = layout(rows, cols)
    values = values.reshape(1, 1, -1)
  size = values.shape[2]
  longest = min(size, -(-width // FLAT_STEP) * FLAT_STEP if flat else width)
  tile = min(longest, TILE)
  reach = -(-longest // tile) * tile
  margin = tile if flat or reach > size else 0
  behind = max(reach - width, 0) + (0 if col_start is None else width)
  lanes = jnp.arange(tile, dtype=jnp.int32)[None]
  zero = jnp.int32(0)

  def one_client(n, total):
    n = jnp.int32(n)
    weight, columns = weights[n], jnp.minimum(cols[n], width)

    def one_tile(row, first, total):
      begin = offsets[n] + row * stride[n] + first if flat else first
      early = jnp.maximum(begin - (size - tile), 0)
      source = (zero, zero) if flat else (n, row)
      value = lax.dynamic_slice(values, (*source, begin - early), (1, 1, tile))
      valid = (lanes >= early) & (lanes < columns - first + early)
      term = jnp.where(valid, weight * value[0].astype(jnp.float32), 0.0)
      target = margin + first - early
      if col_start is not None:
        target += col_start[n]
      if row_start is not None:
        row += row_start[n]
        row = jnp.where(row >= height, row - height, row)
      sums = lax.dynamic_slice(total, (row, target), (1, tile))
      return lax.dynamic_update_slice(total, sums + term, (row, target))

    def one_row(row, total):
      if longest == tile:
        return one_tile(row, zero, total)
      tiles = -(-columns // tile)
      return lax.fori_loop(
        0, tiles, lambda k, total: one_tile(row, k * tile, total), total
      )

    count = jnp.where(weight == 0, 0, jnp.minimum(rows[n], height))
    return lax.fori_loop(0, count, one_row, total)

  windows = [x for x in (row_start, col_start) if x is not None]
  start = varying_zeros(
    (height, margin + width + behind), values, rows, cols, weights, *windows
  )
  total = lax.fori_loop(0, rows.size, one_client, start)[:, margin:]
  if col_start is None:
    return total[:, :width]
  return total[:, :width] + total[:, width : 2 * width]


def _reduce_blocks(values, rows, cols, row_start, col_start, weights, *, shape):
  in_rows, row, in_cols, col = _within(rows, cols, row_start, col_start, shape)
  inside = in_rows[:, :, None] & in_cols[:, None, :]
  row, col = row[:, :, None], col[:, None, :]
  if values.ndim == 1:
    offsets, stride = layout(rows, cols)
    place = offsets[:, None, None] + row * stride[:, None, None] + col
    value = values.at[place].get(mode="clip")
  else:
    client = jnp.arange(rows.size, dtype=jnp.int32)[:, None, None]
    value = values.at[client, row, col].get(mode="clip")
  value = jnp.where(inside, value, jnp.zeros((), value.dtype))
  terms = weights[:, None, None] * finite_if_absent(value, weights)
  return terms.sum(axis=0)


def _within(rows, cols, row_start, col_start, shape):
  """Rows that clients hold, bool[N, R], where, i32[N, R]; columns likewise."""

  def one(count, start, size):
    place = jnp.arange(size, dtype=jnp.int32)[None]
    if start is not None:
      place = place - start[:, None]
      place = jnp.where(place < 0, place + size, place)
    place = jnp.broadcast_to(place, (count.size, size))
    return place < count[:, None], place

  return *one(rows, row_start, shape[0]), *one(cols, col_start, shape[1])


def finite_if_absent(values, weights):
  """Values [N, ...] as f32, with 0 for NaN and Inf of clients without weight.

  Not 0 for all they sent: the derivative by a weight of 0 is not 0.
  """
  values = values.astype(jnp.float32)
  absent = (weights == 0).reshape(-1, *(1,) * (values.ndim - 1))
  return jnp.where(absent & ~jnp.isfinite(values), jnp.float32(0), values)


def varying_zeros(shape, *arrays):
  """Zeros that under shard_map vary over the mesh axes of these arrays.

  The carry of a loop has to from the start.
  """
  zero = jnp.float32(0)
  for array in arrays:
    if array.size:
      zero = jnp.where(array[(0,) * array.ndim] != 0, zero, zero)
  return jnp.zeros(shape, jnp.float32) + zero
