"""Named shapes that the tests and the benchmark share."""

from typing import NamedTuple

import jax
import numpy as np


class Spec(NamedTuple):
  """index, value [clients, entries] of a vector of `size`.

  padding: share of the entries that is padding, on both sides of the range.
  weighted: clients have weights, one of which is 0 and sends NaN.
  bench: the benchmark runs it; gpu: on a GPU only.
  """

  name: str
  clients: int
  entries: int
  size: int
  padding: float = 0.0
  weighted: bool = True
  bench: bool = False
  gpu: bool = False


SPECS = (
  Spec("nobody", 0, 4, 10),
  Spec("no_entries", 3, 0, 10),
  Spec("no_parameters", 3, 4, 0),
  Spec("one", 1, 1, 1, weighted=False),
  Spec("all_padding", 3, 5, 9, padding=1.0),
  Spec("duplicates", 5, 33, 7),
  Spec("unweighted", 6, 40, 100, padding=0.2, weighted=False),
  Spec("ragged", 7, 130, 1000, padding=0.2),
  Spec("two_stretches", 3, 1030, 5000, padding=0.1),
  Spec("million", 1000, 10_000, 1_000_000, bench=True),
)


def inputs(spec: Spec) -> tuple[np.ndarray | None, ...]:
  """index i32[N, k], value f32[N, k], weight f32[N] or None."""
  rng = np.random.default_rng(0)
  shape = spec.clients, spec.entries
  index = rng.integers(0, max(spec.size, 1), shape, np.int32)
  outside = rng.choice([-1, spec.size, spec.size + 5], shape).astype(np.int32)
  index = np.where(rng.random(shape) < spec.padding, outside, index)
  index.sort(axis=1)
  value = rng.standard_normal(shape, np.float32)
  if not spec.weighted:
    return index, value, None
  weight = rng.random(spec.clients, np.float32)
  weight[1:2] = 0
  value[1:2] = np.nan
  return index, value, weight


def _aot(weight=True, scale=False, clients=1000, entries=10_000):
  shapes = {
    "index": ((clients, entries), "int32"),
    "value": ((clients, entries), "float32"),
    "weight": ((clients,), "float32"),
    "scale": ((1,), "float32"),
  }
  if not weight:
    del shapes["weight"]
  if not scale:
    del shapes["scale"]
  arrays = tuple(jax.ShapeDtypeStruct(*each) for each in shapes.values())
  return arrays, {"fields": tuple(shapes), "size": 10**7}


# Name, op in op.py, shapes, static parameters: see aot.py.
AOT = (
  ("weighted", "SUM", *_aot()),
  ("unweighted", "SUM", *_aot(weight=False)),
  ("fixed", "FIXED", *_aot(scale=True)),
)
