"""Other ways to the mean over holders; see sign_votes/rivals.py."""

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_het_kernels.overlap_mean import specs
from fedjax_het_kernels.overlap_mean.op import (
  flatten_blocks,
  overlap_mean,
  overlap_mean_blocks,
  row_index,
)


def variants(spec):
  """Name -> (prepare, run) for the rows of `spec`."""
  shape = spec.clients, spec.rows, spec.columns

  def entries(values, ids, clients, weights, old):
    return values, ids, weights[clients], old

  def entries_and_index(values, ids, clients, weights, old):
    index = row_index(ids, spec.rows)
    return values, ids, weights[clients], old, index

  def given_index(values, ids, weights, old, index):
    return overlap_mean(values, ids, weights, old, index=index)

  def segments(values, ids, weights, old):
    total = jax.ops.segment_sum(values * weights[:, None], ids, spec.rows)
    held = jax.ops.segment_sum(weights, ids, spec.rows)[:, None]
    return _mean(total, held, old)

  def to_dense(values, ids, clients, weights, old):
    dense = jnp.zeros(shape).at[clients, ids].set(values)
    mask = jnp.zeros(shape[:2]).at[clients, ids].set(jnp.float32(1))
    return dense, mask, weights, old

  def padded(dense, mask, weights, old):
    total = _sum_clients(weights, dense * mask[:, :, None])
    return _mean(total, (weights @ mask)[:, None], old)

  return {
    "ours": (entries, overlap_mean),
    "ours, given the index": (entries_and_index, given_index),
    "segment sums": (entries, segments),
    "padded dense, mask": (to_dense, padded),
  }


def block_variants(spec):
  """Name -> (prepare, run) for the blocks of `spec`."""
  _, rows, cols, *_ = specs.block_inputs(spec)
  size = spec.rows, spec.columns

  def same(*args):
    return args

  def ours(values, rows, cols, weights, old, row_start, col_start):
    return overlap_mean_blocks(
      values,
      rows,
      cols,
      weights,
      old,
      row_start=row_start,
      col_start=col_start,
    )

  def to_flat(values, *rest):
    blocks = [v[:r, :c] for v, r, c in zip(values, rows, cols, strict=True)]
    return flatten_blocks(blocks), *rest

  def to_dense(values, rows, cols, weights, old, row_start, col_start):
    """What a server does that knows masks only: everything in its place."""
    pad = [(0, 0)] + [
      (0, n - m) for n, m in zip(size, spec.stored, strict=True)
    ]
    place = [jnp.arange(n, dtype=jnp.int32)[None] for n in size]
    inside = (place[0] < rows[:, None])[:, :, None]
    inside = inside & (place[1] < cols[:, None])[:, None, :]
    dense = jnp.where(inside, jnp.pad(values, pad), jnp.float32(0))
    mask = inside.astype(jnp.float32)
    if row_start is not None:
      roll = jax.vmap(lambda x, r, c: jnp.roll(x, (r, c), (0, 1)))
      dense = roll(dense, row_start, col_start)
      mask = roll(mask, row_start, col_start)
    return dense, mask, weights, old

  def padded(dense, mask, weights, old):
    total = _sum_clients(weights, dense * mask)
    return _mean(total, _sum_clients(weights, mask), old)

  def fused(dense, mask, weights, old):
    weights = weights[:, None, None]
    return _mean(
      (weights * dense).sum(axis=0), (weights * mask).sum(axis=0), old
    )

  return {
    "ours": (same, ours),
    "ours, flattened": (to_flat, ours),
    "padded dense, mask": (to_dense, padded),
    "padded dense, multiply, sum": (to_dense, fused),
  }


def _sum_clients(weights, values):
  return jnp.einsum(
    "n,nrc->rc", weights, values, precision=lax.Precision.HIGHEST
  )


def _mean(total, held, old):
  return jnp.where(held > 0, total / jnp.where(held > 0, held, 1.0), old)
