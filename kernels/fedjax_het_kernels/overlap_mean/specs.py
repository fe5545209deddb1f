"""Named shapes that the tests and the benchmark share."""

from typing import NamedTuple

import jax
import numpy as np

KEPT = (1 / 8, 1 / 4, 1 / 2, 1)  # shares of a layer that clients keep


class Spec(NamedTuple):
  """Clients that keep some rows each of a layer [rows, columns].

  kept: each client keeps one of these shares of the rows.
  zero_weight: that share of the clients has weight 0, and sends NaN.
  bench: the benchmark runs it; gpu: on a GPU only.
  """

  name: str
  clients: int
  rows: int
  columns: int
  kept: tuple[float, ...] = KEPT
  zero_weight: float = 0.0
  bench: bool = False
  gpu: bool = False


SPECS = (
  Spec("nobody", 0, 5, 3),
  Spec("no_rows", 3, 0, 4),
  Spec("no_columns", 3, 4, 0),
  Spec("all_pruned", 4, 6, 5, kept=(0,)),
  Spec("one_entry", 1, 1, 1, kept=(1,)),
  Spec("bias", 9, 40, 1),
  Spec("ragged", 13, 11, 37, zero_weight=0.3),
  Spec("no_weight", 5, 8, 16, zero_weight=1.0),
  Spec("conv", 6, 16, 144, kept=(1 / 4, 1 / 2)),
  Spec("two_stretches", 6, 5, 600),
  Spec("hidden_1024", 200, 1024, 512, bench=True),
  Spec("wide_4096", 32, 4096, 4096, kept=(1 / 16, 1 / 8, 1 / 4), gpu=True),
)


def inputs(spec: Spec) -> tuple[np.ndarray, ...]:
  """values [T, C], ids i32[T], clients i32[T], weights f32[N], old [R, C]."""
  rng = np.random.default_rng(0)
  kept = [
    np.sort(rng.choice(spec.rows, round(share * spec.rows), replace=False))
    for share in rng.choice(spec.kept, spec.clients)
  ]
  ids = np.concatenate([np.zeros(0), *kept]).astype(np.int32)
  clients = np.repeat(np.arange(spec.clients), [len(rows) for rows in kept])
  weights = rng.integers(1, 600, spec.clients).astype(np.float32)
  weights[: round(spec.zero_weight * spec.clients)] = 0
  values = rng.standard_normal((len(ids), spec.columns), np.float32)
  values[weights[clients] == 0] = np.nan
  old = rng.standard_normal((spec.rows, spec.columns), np.float32)
  return values, ids, clients.astype(np.int32), weights, old


class BlockSpec(NamedTuple):
  """Clients that hold a block each of a layer [rows, columns].

  stored: [H, W] that `values` has for a client.
  windows: blocks begin anywhere and wrap around (FedRolex), else at the top
    left (HeteroFL).
  bench: the benchmark runs it; gpu: on a GPU only.
  """

  name: str
  clients: int
  rows: int
  columns: int
  stored: tuple[int, int]
  windows: bool = False
  bench: bool = False
  gpu: bool = False


BLOCKS = (
  BlockSpec("nobody", 0, 5, 3, (5, 3)),
  BlockSpec("no_columns", 2, 4, 0, (4, 0)),
  BlockSpec("one", 1, 1, 1, (1, 1)),
  BlockSpec("ragged", 7, 19, 37, (19, 37)),
  BlockSpec("ragged_windows", 7, 19, 37, (19, 37), windows=True),
  BlockSpec("half_stored", 6, 40, 72, (20, 36)),
  BlockSpec("half_stored_windows", 6, 40, 72, (20, 36), windows=True),
  BlockSpec("several_tiles", 4, 33, 140, (33, 140)),
  BlockSpec("hidden_1024", 200, 1024, 512, (1024, 512), bench=True),
  BlockSpec("rolling", 200, 1024, 512, (512, 256), windows=True, bench=True),
)


def block_inputs(spec: BlockSpec) -> tuple[np.ndarray | None, ...]:
  """values [N, H, W], rows, cols i32[N], weights f32[N], old [R, C], starts.

  Blocks have a share `KEPT` of the rows and of the columns; what `values` has
  beside them is NaN.
  """
  rng = np.random.default_rng(1)
  share = rng.choice(KEPT, spec.clients)
  rows, cols = (
    np.minimum(np.ceil(share * size), most).astype(np.int32)
    for size, most in zip(spec[2:4], spec.stored, strict=True)
  )
  values = rng.standard_normal((spec.clients, *spec.stored), np.float32)
  for value, row, col in zip(values, rows, cols, strict=True):
    value[row:], value[:, col:] = np.nan, np.nan
  weights = rng.integers(1, 600, spec.clients).astype(np.float32)
  weights[1:2] = 0
  old = rng.standard_normal((spec.rows, spec.columns), np.float32)
  starts = (None, None)
  if spec.windows:
    starts = tuple(
      rng.integers(0, size, spec.clients, dtype=np.int32) for size in spec[2:4]
    )
  return values, rows, cols, weights, old, *starts


def _rows(dtype, old=True, entries=50_000, rows=4096, columns=4096):
  """What compiling needs of `overlap_mean`, given the index."""
  shapes = {
    "values": ((entries, columns), dtype),
    "ids": ((entries,), "int32"),
    "weights": ((entries,), "float32"),
    "order": ((entries,), "int32"),
    "starts": ((rows + 1,), "int32"),
    "old": ((rows, columns), dtype),
  }
  return _case(shapes, old, count=rows)


def _blocks(dtype, flat=False, windows=False, old=True, shape=(4096, 4096)):
  """What compiling needs of `overlap_mean_blocks` for 100 clients."""
  shapes = {
    "values": ((10**8,) if flat else (100, *shape), dtype),
    "rows": ((100,), "int32"),
    "cols": ((100,), "int32"),
    "weights": ((100,), "float32"),
    "old": (shape, dtype),
  }
  if windows:
    starts = {name: ((100,), "int32") for name in ("row_start", "col_start")}
    shapes = {**starts, **shapes}
  return _case(shapes, old, shape=shape)


def _case(shapes, old, **static):
  if not old:
    del shapes["old"]
  arrays = tuple(jax.ShapeDtypeStruct(*each) for each in shapes.values())
  return arrays, {"fields": tuple(shapes), **static}


# Name, op in op.py, shapes, static parameters: see aot.py.
AOT = (
  ("rows", "ROWS", *_rows("float32")),
  ("rows_sums", "ROWS", *_rows("float32", old=False)),
  ("rows_bfloat16", "ROWS", *_rows("bfloat16")),
  ("rows_of_100", "ROWS", *_rows("float32", columns=100)),
  ("blocks", "BLOCKS", *_blocks("float32")),
  ("blocks_sums", "BLOCKS", *_blocks("float32", old=False)),
  ("blocks_flat", "BLOCKS", *_blocks("float32", flat=True)),
  ("windows", "BLOCKS", *_blocks("float32", windows=True)),
)
