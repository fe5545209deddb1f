"""Speed of each formulation of a convolution: flat, in a scan, under vmap.

For typical layers and for the output and the gradients by image and by filter:
GFLOP/s of one client's batch alone (flat), of several clients with filters of
their own in a scan, and of the same under vmap.  GFLOP count the plain sum (so
Winograd can pass the machine's peak), seconds are CPU-seconds on a CPU and wall
time elsewhere; the formulations of a cell take turns, and the median counts.
`models.conv.choose` was written from this table.

Command: taskset -c 0 fedjax-het bench_conv
Minutes: about 10 on one core.
Expected: experiments/results/bench_conv/.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from fedjax_het.core.errors import unknown
from fedjax_het.core.types import Array
from fedjax_het.models.conv import FORMULATIONS, conv2d
from fedjax_het_experiments import _flags
from fedjax_het_experiments._bench_report import write_bench


class Layer(NamedTuple):
  """A convolution with padding SAME on square images."""

  size: int
  inputs: int
  outputs: int
  taps: int
  stride: int = 1

  @property
  def side(self) -> int:
    """Of the output image."""
    return -(-self.size // self.stride)


LAYERS = {
  "cnn1": Layer(28, 1, 32, 5),
  "cnn2": Layer(14, 32, 64, 5),
  "lenet2": Layer(14, 6, 16, 5),
  "resnet16": Layer(32, 16, 16, 3),
  "resnet32": Layer(16, 32, 32, 3),
  "resnet64": Layer(8, 64, 64, 3),
  "resnet32/2": Layer(32, 16, 32, 3, 2),
}
CONTEXTS = ("flat", "scan", "vmap")
FACES = ("output", "image", "filter")

_LAYERS = flags.DEFINE_list("bench_conv_layers", list(LAYERS), "Layers.")
_CLIENTS = flags.DEFINE_integer(
  "bench_conv_clients", 8, "Clients in a scan or a vmap.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  "bench_conv_batch", 20, "Images of a client.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
  "bench_conv_repeats", 7, "Warm timings; the median counts.", lower_bound=1
)


def operation(layer: Layer, formulation: str, face: str) -> Callable:
  """One face as a function of two arrays, and the shapes of these."""
  x = (_BATCH.value, layer.size, layer.size, layer.inputs)
  w = (layer.taps, layer.taps, layer.inputs, layer.outputs)
  g = (_BATCH.value, layer.side, layer.side, layer.outputs)

  def conv(x: Array, w: Array) -> Array:
    return conv2d(x, w, strides=(layer.stride,) * 2, formulation=formulation)

  def image(g: Array, w: Array) -> Array:
    like = jax.ShapeDtypeStruct(x, g.dtype)
    return jax.linear_transpose(lambda x: conv(x, w), like)(g)[0]

  def filter_(x: Array, g: Array) -> Array:
    like = jax.ShapeDtypeStruct(w, g.dtype)
    return jax.linear_transpose(lambda w: conv(x, w), like)(g)[0]

  return {
    "output": (conv, (x, w)),
    "image": (image, (g, w)),
    "filter": (filter_, (x, g)),
  }[face]


def runnable(layer: Layer, formulation: str, face: str, context: str):
  """A compiled call without arguments, and the clients that it serves."""
  function, shapes = operation(layer, formulation, face)
  clients = 1 if context == "flat" else _CLIENTS.value
  generator = np.random.default_rng(0)
  arrays = [
    jax.numpy.asarray(generator.standard_normal((clients, *s), np.float32))
    for s in shapes
  ]
  if context == "flat":
    arrays = [array[0] for array in arrays]
    whole = function
  elif context == "scan":

    def whole(*arrays):
      return jax.lax.map(lambda pair: function(*pair), arrays)

  else:
    whole = jax.vmap(function)
  compiled = jax.jit(whole).lower(*arrays).compile()
  return (lambda: jax.block_until_ready(compiled(*arrays))), clients


def clock() -> float:
  """CPU-seconds on a CPU, to bear a busy machine; else wall time."""
  if jax.default_backend() == "cpu":
    return time.process_time()
  return time.perf_counter()


def matmul_gflop_per_s() -> float:
  """Of a large float32 product, to compare with; the median of several."""
  a = jax.numpy.ones((2048, 2048))
  product = jax.jit(jax.numpy.matmul).lower(a, a).compile()
  times = []
  for _ in range(_REPEATS.value):
    start = clock()
    jax.block_until_ready(product(a, a))
    times.append(clock() - start)
  return 2e-9 * 2048**3 / statistics.median(times)


def measure(name: str) -> Iterator[dict]:
  """The points of one layer; formulations take turns."""
  layer = LAYERS[name]
  gflop = 2e-9 * math.prod(
    (_BATCH.value, layer.side**2, layer.taps**2, layer.inputs, layer.outputs)
  )
  formulations = [
    f for f in FORMULATIONS if f != "winograd" or layer.stride == 1
  ]
  for face in FACES:
    for context in CONTEXTS:
      runs = {f: runnable(layer, f, face, context) for f in formulations}
      seconds = {f: [] for f in formulations}
      for repeat in range(1 + _REPEATS.value):
        for formulation, (run, clients) in runs.items():
          start = clock()
          run()
          if repeat:  # the first warms up
            seconds[formulation].append((clock() - start) / clients)
      for formulation, times in seconds.items():
        yield {
          "layer": name,
          "face": face,
          "context": context,
          "formulation": formulation,
          "gflop_per_s": gflop / statistics.median(times),
          "seconds": times,
        }


def main(argv: list[str]) -> None:
  del argv
  for name in _LAYERS.value:
    if name not in LAYERS:
      raise unknown("layer", name, LAYERS)
  started, matmul = time.monotonic(), matmul_gflop_per_s()
  points = [point for name in _LAYERS.value for point in measure(name)]
  write_bench(
    "GFLOP/s of a convolution: flat / scan / vmap",
    ("layer", "formulation", *FACES),
    list(_rows(points)),
    points,
    seconds=time.monotonic() - started,
    facts={
      "faces": "`output`: y; `image`, `filter`: gradients by x and w",
      "cores": f"{_flags.usable_cores()} usable by this process",
      "matmul": f"{matmul:.0f} GFLOP/s, 2048 x 2048 float32",
    },
  )


def _rows(points: list[dict]) -> Iterator[tuple[str, ...]]:
  speed = {
    (p["layer"], p["formulation"], p["face"], p["context"]): p["gflop_per_s"]
    for p in points
  }
  for layer, formulation in dict.fromkeys(key[:2] for key in speed):
    cells = [
      " / ".join(f"{speed[layer, formulation, face, c]:.3g}" for c in CONTEXTS)
      for face in FACES
    ]
    yield layer, formulation, *cells


if __name__ == "__main__":
  _flags.run(main, unused=(*_flags.OF_A_RUN, "data_dir", "devices"))
