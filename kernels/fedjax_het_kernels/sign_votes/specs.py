"""Named shapes that the tests and the benchmark share."""

from typing import NamedTuple

import jax
import numpy as np

from fedjax_het_kernels.layout import num_words


class Spec(NamedTuple):
  """words u32[clients, W] of `size` signs, and weights.

  weights: "equal" (None), "int" (sample counts), "float" or "zero".
  bench: the benchmark runs it;  gpu: on a GPU only.
  """

  name: str
  clients: int
  size: int
  weights: str
  bench: bool = False
  gpu: bool = False


SPECS = (
  Spec("nobody", 0, 100, "int"),
  Spec("no_parameters", 3, 0, "float"),
  Spec("one_client", 1, 37, "float"),
  Spec("two_clients", 2, 4097, "equal"),
  Spec("less_than_a_block", 7, 129, "int"),
  Spec("one_block", 8, 4096, "int"),
  Spec("ragged", 13, 5000, "float"),
  Spec("one_parameter", 9, 1, "equal"),
  Spec("no_weight", 10, 300, "zero"),
  Spec("mlp_784_64_10", 100, 50_890, "int"),
  Spec("cnn_fedavg", 100, 1_663_370, "int", bench=True),
  Spec("million", 1000, 1_000_000, "int", bench=True),
  Spec("ten_million", 1000, 10_000_000, "int", gpu=True),
)


def inputs(spec: Spec) -> tuple[np.ndarray, np.ndarray | None]:
  """Seeded random words (padding bits too: they are ignored) and weights."""
  rng = np.random.default_rng(0)
  shape = (spec.clients, num_words(spec.size))
  words = rng.integers(0, 2**32, shape, dtype=np.uint32)
  weights = {
    "equal": None,
    "int": rng.integers(1, 600, spec.clients, dtype=np.int32),
    "float": rng.random(spec.clients, np.float32),
    "zero": np.zeros(spec.clients, np.float32),
  }[spec.weights]
  return words, weights


def _aot(weights, rows=1, clients=1000, size=10_000_000):
  """What compiling needs of `sign_votes` with these weights."""
  words = jax.ShapeDtypeStruct((clients, num_words(size)), "uint32")
  static = {"fields": ("words",), "size": size, "output": "mean"}
  if weights is None:
    return (words,), static
  static["fields"] = ("words", "weights")
  return (words, jax.ShapeDtypeStruct((rows, clients), weights)), static


AOT = (
  ("equal", "VOTES", *_aot(None)),
  ("uint8", "VOTES", *_aot("uint8")),
  ("uint16", "VOTES", *_aot("uint16")),
  ("float32", "VOTES", *_aot("float32")),
  ("int32", "VOTES", *_aot("int32")),
  ("clusters", "VOTES", *_aot("float32", rows=5)),
)
