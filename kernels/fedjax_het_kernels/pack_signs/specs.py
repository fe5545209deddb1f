"""Named shapes that the tests and the benchmark share."""

from typing import NamedTuple

import jax
import numpy as np


class Spec(NamedTuple):
  """values f32[clients, size].

  bench: the benchmark runs it; gpu: on a GPU only.
  """

  name: str
  clients: int
  size: int
  bench: bool = False
  gpu: bool = False


SPECS = (
  Spec("no_parameters", 2, 0),
  Spec("one_parameter", 1, 1),
  Spec("below_a_lane_row", 3, 127),
  Spec("one_tile", 2, 4096),
  Spec("one_more_than_a_tile", 2, 4097),
  Spec("mlp_784_64_10", 4, 50_890),
  Spec("million", 100, 1_000_000, bench=True),
  Spec("ten_million", 100, 10_000_000, gpu=True),
)


def inputs(spec: Spec) -> tuple[np.ndarray]:
  """Seeded normal values with some zeros of both signs."""
  rng = np.random.default_rng(0)
  values = rng.standard_normal((spec.clients, spec.size), np.float32)
  values[:, ::7] = 0.0
  values[:, ::14] = -0.0
  return (values,)


def certain_inputs(spec: Spec) -> tuple[np.ndarray]:
  """Probabilities 0 and 1, so that however bits are drawn they are known."""
  (values,) = inputs(spec)
  return ((values >= 0).astype(np.float32),)


_KEYS = jax.ShapeDtypeStruct((100, 2), "uint32")
_FLOATS = jax.ShapeDtypeStruct((100, 1_000_000), "float32")
# Name, op in op.py, shapes, static parameters: see aot.py.
AOT = (
  ("float32", "PACK", (_FLOATS,), {}),
  ("bfloat16", "PACK", (_FLOATS.update(dtype="bfloat16"),), {}),
  ("sample", "SAMPLE", (_KEYS, _FLOATS), {}),
)
