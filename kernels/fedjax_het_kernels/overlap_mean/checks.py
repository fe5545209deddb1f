"""What the public functions accept, and what they say to the rest."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fedjax_het_kernels.overlap_mean import xla

FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32)


def entries(name, values, ids, weights, shape, index) -> dict[str, jax.Array]:
  """The arrays of `ROWS` but old, checked."""
  values = _floats(name, "values", values)
  ids = row_ids(name, ids)
  if values.ndim == 0 or values.shape[1:] != tuple(shape[1:]):
    raise ValueError(
      f"{name}: rows of shape {list(shape[1:])} need values"
      f" {['T', *shape[1:]]}, not {list(values.shape)}"
    )
  if ids.shape != values.shape[:1]:
    raise ValueError(
      f"{name}: {values.shape[0]} entries need ids [{values.shape[0]}], not"
      f" {list(ids.shape)}"
    )
  given = {
    "values": values.reshape(values.shape[0], math.prod(values.shape[1:])),
    "ids": ids,
    "weights": _weights(name, weights, ids.size),
  }
  if index is not None:
    order, starts = map(jnp.asarray, index)
    if (order.shape, starts.shape) != (ids.shape, (shape[0] + 1,)):
      raise ValueError(
        f"{name}: the index has {order.size} entries and {starts.size - 1}"
        f" rows, not {ids.size} and {shape[0]}; give row_index(ids, {shape[0]})"
      )
    given.update(order=order, starts=starts)
  return given


def blocks(name, values, rows, cols, weights, shape, row_start, col_start):
  """The arrays of `BLOCKS` but old, checked."""
  values = _floats(name, "values", values)
  if len(shape) != 2 or values.ndim not in (1, 3):
    raise ValueError(
      f"{name}: needs values [N, H, W] or [L] and a matrix [R, C], not"
      f" {list(values.shape)} and {list(shape)}"
    )
  if values.ndim == 1 and values.size >= 2**31:
    raise ValueError(
      f"{name}: {values.size} flattened values are more than int32 can count;"
      " give some of the clients at a time to overlap_sums_blocks"
    )
  weights = _weights(name, weights, jnp.size(rows))
  most = shape if values.ndim == 1 else np.minimum(shape, values.shape[1:])
  given = {
    "values": values,
    "rows": _counts(name, "rows", rows, weights.size, most[0]),
    "cols": _counts(name, "cols", cols, weights.size, most[1]),
  }
  if values.ndim == 3 and values.shape[0] != weights.size:
    raise ValueError(
      f"{name}: {values.shape[0]} blocks need as many weights, not"
      f" {weights.size}"
    )
  rows, cols = map(_concrete, (given["rows"], given["cols"]))
  if values.ndim == 1 and rows is not None and cols is not None:
    step = xla.FLAT_STEP
    length = int((rows.astype(np.int64) * (-(-cols // step) * step)).sum())
    if length != values.size:
      raise ValueError(
        f"{name}: these rows and cols need {length} flattened values, not"
        f" {values.size}; see flatten_blocks"
      )
  if row_start is not None:
    given["row_start"] = _counts(
      name, "row_start", row_start, weights.size, max(shape[0] - 1, 0)
    )
  if col_start is not None:
    given["col_start"] = _counts(
      name, "col_start", col_start, weights.size, max(shape[1] - 1, 0)
    )
  return {**given, "weights": weights}


def _concrete(array) -> np.ndarray | None:
  """The values, or None where this host does not know them."""
  if isinstance(array, Tracer):
    return None
  # An array that spans hosts is concrete, but no host sees all of it.
  if not getattr(array, "is_fully_addressable", True):
    return None
  return np.asarray(array)


def _counts(name, field, array, clients, most) -> jax.Array:
  """int32[N] in 0 ... most; cut to that where the values are not known."""
  known, array = _concrete(array), jnp.asarray(array)
  if array.dtype != jnp.int32 or array.shape != (clients,):
    raise ValueError(
      f"{name}: {field} must be int32[{clients}], not {array.dtype}"
      f"{list(array.shape)}"
    )
  if known is None:
    return jnp.clip(array, 0, int(most))
  if ((known < 0) | (known > most)).any():
    raise ValueError(f"{name}: {field} must be in 0 ... {most}, not {known}")
  return array


def _weights(name, weights, count) -> jax.Array:
  known = _concrete(weights)
  if known is not None and not (np.isfinite(known) & (known >= 0)).all():
    raise ValueError(f"{name}: weights must be finite and not negative")
  weights = jnp.asarray(weights)
  if weights.dtype != jnp.float32 or weights.shape != (count,):
    raise ValueError(
      f"{name}: weights must be float32[{count}], not {weights.dtype}"
      f"{list(weights.shape)}"
    )
  return weights


def row_ids(name, ids) -> jax.Array:
  ids = jnp.asarray(ids)
  if ids.ndim != 1 or ids.dtype != jnp.int32:
    raise ValueError(
      f"{name}: ids must be int32[T], not {ids.dtype}{list(ids.shape)}"
    )
  return ids


def old_values(name, old) -> jax.Array:
  old = _floats(name, "old", old)
  if old.ndim == 0:
    raise ValueError(f"{name}: old must be [R, ...], not a scalar")
  return old


def _floats(name, field, array) -> jax.Array:
  array = jnp.asarray(array)
  if array.dtype not in FLOATS:
    raise ValueError(
      f"{name}: {field} must be float16, bfloat16 or float32, not {array.dtype}"
    )
  return array
