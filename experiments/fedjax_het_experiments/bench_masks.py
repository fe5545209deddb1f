"""Memory and time of evaluating N personal sign masks of one network.

All clients share the weights of an MLP 784-1024-10, and each has a sign for
every weight.  Three ways to all clients' logits on one batch: from packed bits
(`masks.personal`), from N dense copies of the weights, and from dense copies of
a chunk of clients at a time, made from the bits.  Memory is what XLA planned
for arguments, results and temporaries; the dense copies are only run where
they fit half of the free memory.  Seconds are CPU-seconds on a CPU and wall
time elsewhere, medians; making the N dense copies is not counted.

Command: fedjax-het bench_masks
Minutes: about 2 on two cores.
Expected: experiments/results/bench_masks/.
"""

import functools
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from fedjax_het import models
from fedjax_het.core.errors import UserError
from fedjax_het.masks import personal
from fedjax_het.training.files import write_bytes_atomic
from fedjax_het.training.plots import COLOURS, format_bytes, png
from fedjax_het_experiments import _flags
from fedjax_het_experiments._bench_report import write_bench
from fedjax_het_kernels.masked_matmul.op import unpack_rows

INPUTS, CLASSES = 784, 10

_CLIENTS = flags.DEFINE_list(
  "bench_masks_clients", ["100", "300", "1000", "3000", "10000"], "Each N."
)
_HIDDEN = flags.DEFINE_integer(
  "bench_masks_hidden", 1024, "Hidden units.", lower_bound=1
)
_BATCH = flags.DEFINE_integer(
  "bench_masks_batch", 16, "Examples in the batch.", lower_bound=1
)
_CHUNK = flags.DEFINE_integer(
  "bench_masks_chunk", 32, "Most clients with dense copies.", lower_bound=1
)
_SECONDS = flags.DEFINE_float(
  "bench_masks_seconds", 3, "Wall time after which a way is timed no more."
)


def packed(params: Any, bits: Any, x: jax.Array) -> jax.Array:
  """Ours: [N, B, classes]."""
  return personal.logits(params, bits, x)


def dense(copies: Any, x: jax.Array) -> jax.Array:
  """From copies of the weights, [N, K, M] a layer."""
  # Else XLA:CPU would transpose the copies: as much memory again.
  x = jnp.broadcast_to(x, (len(copies[0]), *x.shape))
  z = jnp.einsum("nbk,nkm->nbm", x, copies[0])
  return jnp.einsum("nbk,nkm->nbm", jax.nn.relu(z), copies[1])


def in_chunks(params: Any, bits: Any, x: jax.Array) -> jax.Array:
  """From copies of the weights of a chunk of clients, made from the bits."""

  clients = bits[0].shape[0]
  size = max(n for n in range(1, _CHUNK.value + 1) if clients % n == 0)
  chunks = [b.reshape(-1, size, *b.shape[1:]) for b in bits]
  make = jax.vmap(functools.partial(copies, params))
  out = lax.map(lambda chunk: dense(make(chunk), x), chunks)
  return out.reshape(clients, *out.shape[2:])


def copies(params: Any, bits: Any) -> list[jax.Array]:
  """One client's dense weights."""
  kernels = [layer.kernel for layer in personal.layers(params)]
  return [
    jnp.where(unpack_rows(b, len(kernel)), kernel, -kernel)
    for kernel, b in zip(kernels, bits, strict=True)
  ]


WAYS = ("packed", "dense copies", "dense copies in chunks")


def ways() -> dict[str, tuple[Callable, Callable]]:
  """Name -> (prepare, run): `prepare` takes (params, bits, x), not timed."""

  def make(params, bits, x):
    return lax.map(functools.partial(copies, params), bits), x

  def same(*arrays):
    return arrays

  return dict(
    zip(WAYS, [(same, packed), (make, dense), (same, in_chunks)], strict=True)
  )


def measure(params: Any, bits: Any, x: jax.Array) -> Iterator[dict]:
  """The points of the first N clients of `bits`."""
  clients = bits[0].shape[0]
  expected = None
  for name, (prepare, run) in ways().items():
    shapes = jax.eval_shape(prepare, params, bits, x)
    compiled = jax.jit(run).lower(*shapes).compile()
    memory: Any = compiled.memory_analysis()
    point = {
      "way": name,
      "clients": clients,
      "bytes": memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes,
      "temporary_bytes": memory.temp_size_in_bytes,
    }
    if point["bytes"] < 0.5 * free_bytes():
      arguments = jax.block_until_ready(jax.jit(prepare)(params, bits, x))
      out, point["seconds"] = timed(functools.partial(compiled, *arguments))
      expected = out if expected is None else expected
      np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)
    yield point


def timed(run: Callable) -> tuple[np.ndarray, list[float]]:
  """The result and the seconds of each repetition."""
  begin, seconds = time.perf_counter(), []
  while not seconds or (
    len(seconds) < 5 and time.perf_counter() - begin < _SECONDS.value
  ):
    start = clock()
    out = jax.block_until_ready(run())
    seconds.append(clock() - start)
  return np.asarray(out), seconds


def clock() -> float:
  """CPU-seconds on a CPU, to bear a busy machine; else wall time."""
  if jax.default_backend() == "cpu":
    return time.process_time()
  return time.perf_counter()


def free_bytes() -> int:
  """Memory that is left on the device, or on the host of a CPU."""
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def draw(points: list[dict], path: pathlib.Path) -> None:
  """Memory and seconds against N, log-log."""
  from matplotlib.figure import Figure

  unit = "CPU-seconds" if jax.default_backend() == "cpu" else "seconds"
  figure = Figure((10, 4.2), dpi=150, layout="constrained")
  left, right = figure.subplots(1, 2)
  for way, colour, marker in zip(WAYS, COLOURS, "osD", strict=False):
    style = {"color": colour, "marker": marker, "linewidth": 2, "markersize": 6}
    own = [p for p in points if p["way"] == way]
    ran = [p for p in own if "seconds" in p]
    left.plot(
      [p["clients"] for p in own], [p["bytes"] for p in own], label=way, **style
    )
    left.plot(
      [p["clients"] for p in own if p not in ran],
      [p["bytes"] for p in own if p not in ran],
      color=colour,
      marker=marker,
      markerfacecolor="white",
      linestyle="none",
      label=f"{way}, planned only" if len(ran) < len(own) else None,
    )
    right.plot(
      [p["clients"] for p in ran],
      [statistics.median(p["seconds"]) for p in ran],
      **style,
    )
  left.set_title("Memory: arguments, results, temporaries", loc="left")
  left.set_ylabel("bytes")
  right.set_title(f"Time of one batch of {_BATCH.value}", loc="left")
  right.set_ylabel(unit)
  for axes in (left, right):
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("clients")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(color="#E3E3E3")
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)
  left.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
  right.yaxis.set_major_formatter("{x:g}")
  left.legend(frameon=False)
  write_bytes_atomic(path, png(figure))


def main(argv: list[str]) -> None:
  del argv
  try:
    counts = sorted({int(n) for n in _CLIENTS.value})
  except ValueError:
    counts = []
  if not counts or counts[0] < 1:
    raise UserError(
      f"--bench_masks_clients={','.join(_CLIENTS.value)}: give numbers >= 1,"
      " such as 100,1000"
    )
  started = time.monotonic()
  model = models.build(
    "mlp", (INPUTS,), CLASSES, hidden=(_HIDDEN.value,), use_bias=False
  )
  params = model.init(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (_BATCH.value, INPUTS))
  points = []
  for n in counts:
    bits = [
      jax.random.bits(jax.random.key(i), (n, -(-rows // 32), columns))
      for i, (rows, columns) in enumerate(
        layer.kernel.shape for layer in personal.layers(params)
      )
    ]
    points += measure(params, bits, x)
  workdir = pathlib.Path(_flags.WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  draw(points, workdir / "masks.png")
  write_bench(
    "Evaluating N personal sign masks of an MLP",
    ("clients", *(f"{way}: memory / seconds" for way in WAYS)),
    list(_rows(points)),
    points,
    seconds=time.monotonic() - started,
    facts={
      "network": f"{INPUTS}-{_HIDDEN.value}-{CLASSES}, batch {_BATCH.value}",
      "cores": f"{_flags.usable_cores()} usable by this process",
      "dense chunk": f"{_CHUNK.value} clients",
      "plot": "![memory and time against clients](masks.png)",
    },
  )


def _rows(points: list[dict]) -> Iterator[tuple[str, ...]]:
  found = {(p["clients"], p["way"]): p for p in points}
  for clients in dict.fromkeys(p["clients"] for p in points):
    cells = []
    for way in WAYS:
      point = found[clients, way]
      seconds = point.get("seconds")
      time_ = f"{statistics.median(seconds):.3g} s" if seconds else "not run"
      cells.append(f"{format_bytes(point['bytes'])} / {time_}")
    yield f"{clients:,}", *cells


if __name__ == "__main__":
  _flags.run(main, unused=(*_flags.OF_A_RUN, "data_dir", "devices"))
