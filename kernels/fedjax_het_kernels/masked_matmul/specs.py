"""Named shapes that the tests and the benchmark share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Spec(NamedTuple):
  """x [clients, batch, rows] or [batch, rows], weights [rows, columns].

  shared: all clients have the same x.  bench: the benchmark runs it; gpu: on a
  GPU only.
  """

  name: str
  clients: int
  batch: int
  rows: int
  columns: int
  dtype: str = "float32"
  shared: bool = False
  bench: bool = False
  gpu: bool = False


SPECS = (
  Spec("nobody", 0, 3, 40, 5),
  Spec("no_examples", 2, 0, 40, 5),
  Spec("no_rows", 2, 3, 0, 5),
  Spec("no_columns", 2, 3, 40, 0),
  Spec("one_of_each", 1, 1, 1, 1),
  Spec("one_client", 1, 17, 100, 33),
  Spec("even", 2, 16, 64, 128),
  Spec("ragged", 3, 5, 33, 10),
  Spec("several_blocks", 1, 70, 130, 140),
  Spec("half", 2, 20, 96, 80, "float16"),
  Spec("shared_batch", 3, 9, 47, 20, shared=True),
  Spec("brain", 2, 20, 96, 80, "bfloat16"),
  Spec("layer_256", 1000, 32, 256, 256, bench=True),
  Spec("mlp_784_1024", 200, 32, 784, 1024, shared=True, bench=True),
  Spec("layer_1024", 1000, 32, 1024, 1024, "bfloat16", gpu=True),
)
# What rounding leaves: of the output's dtype, and of tf32 on accelerators.
TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


def inputs(spec: Spec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Seeded x, weights with products of order 1, bits (padding bits, too)."""
  rng = np.random.default_rng(0)
  dtype = jnp.dtype(spec.dtype)
  shape = (spec.clients, spec.batch, spec.rows)
  x = rng.standard_normal(shape[1:] if spec.shared else shape, np.float32)
  weights = rng.standard_normal((spec.rows, spec.columns), np.float32)
  weights /= np.float32(max(spec.rows, 1) ** 0.5)
  words = (spec.clients, -(-spec.rows // 32), spec.columns)
  bits = rng.integers(0, 2**32, words, dtype=np.uint32)
  return x.astype(dtype), weights.astype(dtype), bits


def _shapes(clients, batch, rows, columns, dtype):
  """Inputs of the product, of its transpose, and of the scores' step."""
  shape = jax.ShapeDtypeStruct
  x = shape((clients, batch, rows), dtype)
  grad = shape((clients, batch, columns), dtype)
  weights = shape((rows, columns), dtype)
  bits = shape((clients, -(-rows // 32), columns), "uint32")
  scores = shape((clients, rows, columns), "float32")
  rate = shape((1,), "float32")
  return (
    (x, weights, bits),
    (grad, weights, bits),
    (x, grad, weights, scores, rate),
  )


def _aot(label, *shape, precision="default", signed=True):
  forward, backward, step = _shapes(*shape)
  product = {"signed": signed, "precision": precision}
  return (
    (f"product{label}", "MATMUL", forward, {"transposed": False, **product}),
    (f"gradient{label}", "MATMUL", backward, {"transposed": True, **product}),
    (f"step{label}", "STE_UPDATE", step, {"precision": precision}),
  )


AOT = (
  *_aot("", 1000, 32, 1024, 1024, "bfloat16"),
  *_aot(" {0, 1}", 1000, 32, 1024, 1024, "bfloat16", signed=False)[:1],
  *_aot(" of 784 rows", 1000, 20, 784, 1024, "bfloat16"),
  *_aot(" of batch 128", 1000, 128, 1024, 1024, "bfloat16")[:2],
  *_aot(" f32", 1000, 32, 1024, 1024, "float32"),
  *_aot(" f32 highest", 1000, 32, 1024, 1024, "float32", precision="highest"),
  *_aot(" odd", 1000, 30, 783, 1023, "bfloat16"),
  *_aot(" f32 odd", 1000, 30, 783, 1023, "float32")[:1],
)
