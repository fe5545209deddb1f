"""Public functions: means over the clients that hold a row or a block."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het_kernels.bridge import Op
from fedjax_het_kernels.overlap_mean import checks, launch, xla

# Arrays named by the static `fields`: values [T, C]; ids, weights [T];
# order i32[T] and starts i32[R + 1], or neither; old [R, C].  `count` is R.
# Without old the outputs are sums [R, C] and weight [R], else the mean.
ROWS = Op("overlap_mean", xla.rows, launch.rows)
# values [N, H, W] or flat; rows, cols i32[N]; row_start, col_start i32[N] or
# absent; weights f32[N]; old as above, of the static `shape`.
BLOCKS = Op("overlap_mean_blocks", xla.blocks, launch.blocks)


class RowIndex(NamedTuple):
  """Which entries hold a row: order[starts[r]:starts[r + 1]] hold row r.

  order: i32[T], entries sorted by row, in their own order within a row, those
    without a row last; starts: i32[R + 1].
  """

  order: jax.Array
  starts: jax.Array


class OverlapSums(NamedTuple):
  """Sums over some of the clients; those of others add to them.

  total: f32[R, ...], sum of weight * value over the entries that hold it.
  held: f32[R] or f32[R, C], the sum of their weights.
  """

  total: jax.Array
  held: jax.Array


def row_index(ids: jax.Array, rows: int) -> RowIndex:
  """The index by which the Triton kernel finds the entries of a row.

  It depends on the masks alone: make it once if they stay, and give it as
  `index`.  Otherwise the kernel's launch makes it each time; the CPU path needs
  none.

  Args:
    ids: i32[T], the row of each entry; < 0 or >= rows is padding.
    rows: R; static.
  """
  return RowIndex(*xla.row_index(checks.row_ids("row_index", ids), rows))


def overlap_mean(
  values: jax.Array,
  ids: jax.Array,
  weights: jax.Array,
  old: jax.Array,
  *,
  index: RowIndex | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """The mean of each row over the entries that hold it.

    mean_r = sum_{t: ids_t = r} w_t v_t / sum_{t: ids_t = r} w_t
    mean_r = old_r   where nobody holds r, or only entries of weight 0

  Entries are the kept rows of all clients one after the other: what structured
  pruning uploads.  Sums are float32, entry by entry in their order, without
  atomics by Triton and on CPUs: the same bits every time.  What an entry of
  weight 0 says is ignored, NaN, too.

  Args:
    values: f[T, ...], float16, bfloat16 or float32.
    ids: i32[T]; < 0 or >= R is padding.
    weights: f32[T], the client's weight at each of its entries; not negative.
    old: f[R, ...], float16, bfloat16 or float32; gives the result's dtype.
    index: `row_index(ids, R)`, to save its making.
    implementation: None, "xla", "triton" or "interpret": `dispatch.resolve`.

  Returns:
    f[R, ...].  Differentiable in values, weights and old (by plain JAX).

  Raises:
    ValueError: wrong shapes, dtypes or names; concrete weights that are
      negative or not finite (under jit a NaN weight makes its rows NaN).
    NotImplementedError: "triton" on another platform than CUDA.

  References:
    Caldas et al., Expanding the reach of federated learning by reducing client
    resource requirements, arXiv:1812.07210; Diao et al., HeteroFL, ICLR 2021.
  """
  old = checks.old_values("overlap_mean", old)
  given = checks.entries("overlap_mean", values, ids, weights, old.shape, index)
  given["old"] = old.reshape(old.shape[0], math.prod(old.shape[1:]))
  (mean,) = _run(ROWS, given, implementation, count=old.shape[0])
  return mean.reshape(old.shape)


def overlap_sums(
  values: jax.Array,
  ids: jax.Array,
  weights: jax.Array,
  *,
  rows: int,
  index: RowIndex | None = None,
  implementation: str | None = None,
) -> OverlapSums:
  """The sums of `overlap_mean`, for clients that come in chunks or on devices.

  Add up the results (`jax.tree.map(jnp.add, a, b)`, `lax.psum`), then
  `finish_overlap`.

  Args:
    values, ids, weights, index, implementation: as in `overlap_mean`.
    rows: R; static.

  Returns:
    An `OverlapSums` with total f32[R, ...] and held f32[R].

  Raises:
    ValueError, NotImplementedError: as `overlap_mean`.
  """
  shape = (rows, *jnp.shape(values)[1:])
  given = checks.entries("overlap_sums", values, ids, weights, shape, index)
  total, held = _run(ROWS, given, implementation, count=rows)
  return OverlapSums(total.reshape(shape), held)


def overlap_mean_blocks(
  values: jax.Array,
  rows: jax.Array,
  cols: jax.Array,
  weights: jax.Array,
  old: jax.Array,
  *,
  row_start: jax.Array | None = None,
  col_start: jax.Array | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """The mean of a matrix of which client n holds a block of rows x columns.

  Its value (i, j) belongs to row (row_start + i) mod R and column
  (col_start + j) mod C: without starts the top left block of HeteroFL, with
  them the rolling window of FedRolex.  Mean, weights and old as in
  `overlap_mean`; `jax.vmap` over leading axes such as those of a convolution.

  Args:
    values: f[N, H, W], client n's block at the top left and anything in the
      rest; or f[L], made by `flatten_blocks`, which holds only what was sent.
    rows, cols: i32[N], at most H and R, W and C.
    weights: f32[N], not negative.
    old: f[R, C]; gives the result's dtype.
    row_start, col_start: i32[N] in [0, R) and [0, C); None is 0.
    implementation: as in `overlap_mean`.

  Returns:
    f[R, C].  Differentiable in values, weights and old (by plain JAX).

  Raises:
    ValueError: as `overlap_mean`; concrete rows, cols or starts out of range,
      or not those of the flattened values (under jit, nonsense in those).
    NotImplementedError: "triton" on another platform than CUDA.

  References:
    Diao et al., HeteroFL, ICLR 2021; Alam et al., FedRolex, NeurIPS 2022.
  """
  name = "overlap_mean_blocks"
  old = checks.old_values(name, old)
  given = checks.blocks(
    name, values, rows, cols, weights, old.shape, row_start, col_start
  )
  given["old"] = old
  (mean,) = _run(BLOCKS, given, implementation, shape=old.shape)
  return mean


def overlap_sums_blocks(
  values: jax.Array,
  rows: jax.Array,
  cols: jax.Array,
  weights: jax.Array,
  *,
  shape: tuple[int, int],
  row_start: jax.Array | None = None,
  col_start: jax.Array | None = None,
  implementation: str | None = None,
) -> OverlapSums:
  """The sums of `overlap_mean_blocks`; see `overlap_sums`.

  Args:
    values, rows, cols, weights, row_start, col_start, implementation: as in
      `overlap_mean_blocks`.
    shape: (R, C); static.

  Returns:
    An `OverlapSums` with total f32[R, C] and held f32[R, C].

  Raises:
    ValueError, NotImplementedError: as `overlap_mean_blocks`.
  """
  given = checks.blocks(
    "overlap_sums_blocks",
    values,
    rows,
    cols,
    weights,
    shape,
    row_start,
    col_start,
  )
  return OverlapSums(*_run(BLOCKS, given, implementation, shape=tuple(shape)))


def finish_overlap(sums: OverlapSums, old: jax.Array) -> jax.Array:
  """Turns sums into the mean; old where nothing is held.

  Args:
    sums: of all clients.
    old: f[R, ...], of the shape of `sums.total`; gives the result's dtype.

  Returns:
    f[R, ...].
  """
  total, held = sums
  held = held.reshape(held.shape + (1,) * (total.ndim - held.ndim))
  return xla.finish(total, held, jnp.asarray(old))


def flatten_blocks(blocks: Sequence[jax.Array]) -> jax.Array:
  """Blocks of several sizes in one vector, without the rest of the matrix.

  Row after row, each padded to a multiple of 4 values so that a GPU loads 16
  bytes at once: less than 4 values a row, none if all widths are such.

  Args:
    blocks: f[rows, cols], or f[M, rows, cols] of a group of M equal clients, in
      the order of `rows` and `cols`.

  Returns:
    f[L].

  Raises:
    ValueError: a block has another number of axes.
  """
  parts = []
  for block in map(jnp.asarray, blocks):
    if block.ndim not in (2, 3):
      raise ValueError(
        "flatten_blocks: a block must be [rows, cols] or [M, rows, cols], not"
        f" {list(block.shape)}"
      )
    pad = [(0, 0)] * (block.ndim - 1) + [(0, -block.shape[-1] % xla.FLAT_STEP)]
    parts.append(jnp.pad(block, pad).reshape(-1))
  return jnp.concatenate(parts) if parts else jnp.zeros(0, jnp.float32)


def _run(op, given, implementation, **static):
  return op(
    *given.values(),
    implementation=implementation,
    fields=tuple(given),
    **static,
  )
