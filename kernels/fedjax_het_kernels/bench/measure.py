"""One variant: compiled, checked, warmed up, timed."""

import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SECONDS = 20  # a slow variant is repeated at least 3 times, then until here
LEAST = 5e-3  # seconds a sample: fast programs are called several times in one
COPY = 2**27  # bytes of the copy that bandwidth is measured with


def copy_bandwidth() -> float:
  """Bytes a second, read and written, of a pass over a large array.

  The best of 15, and in place: fresh pages would measure the host's allocator.
  """
  array = jnp.zeros(COPY // 4, jnp.float32)
  copy = jax.jit(lambda x: x + 1, donate_argnums=0)
  best = float("inf")
  for _ in range(15):
    start = time.perf_counter()
    array = jax.block_until_ready(copy(array))
    best = min(best, time.perf_counter() - start)
  return 2 * COPY / best


def samples(compiled, args, repeats: int) -> tuple[list[float], list[float]]:
  """Wall and process CPU seconds a call."""
  jax.block_until_ready(compiled(*args))
  start = time.perf_counter()
  jax.block_until_ready(compiled(*args))
  once = time.perf_counter() - start
  # Calls are queued, so a short program is not timed by its dispatch alone.
  calls = max(1, min(100, int(LEAST / max(once, 1e-6))))
  walls, cpus, begin = [], [], time.perf_counter()
  while len(walls) < repeats:
    if len(walls) >= 3 and time.perf_counter() - begin > SECONDS:
      break
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
      out = compiled(*args)
    jax.block_until_ready(out)
    walls.append((time.perf_counter() - wall) / calls)
    cpus.append((time.process_time() - cpu) / calls)
  return walls, cpus


def bench_variant(
  prepare, run, arrays, expected, tolerance, repeats
) -> dict[str, Any]:
  """One row of the table, or why there is none."""
  shapes = jax.eval_shape(prepare, *arrays)
  start = time.perf_counter()
  compiled = jax.jit(run).lower(*shapes).compile()
  compile_s = time.perf_counter() - start
  memory: Any = compiled.memory_analysis()
  moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
  needed = moved + memory.temp_size_in_bytes
  if needed > 0.6 * free_bytes():
    return {"skipped": f"needs {needed / 2**30:.1f} GiB"}
  args = jax.block_until_ready(jax.jit(prepare)(*arrays))
  out = np.asarray(compiled(*args))
  # In float64: the difference of two unsigned integers would wrap.
  error = np.abs(np.float64(out) - np.float64(expected)).max(initial=0)
  walls, cpus = samples(compiled, args, repeats)
  return {
    "correct": bool(error <= tolerance),  # False for NaN, too
    "max_error": float(error),
    "wall_ms": 1e3 * statistics.median(walls),
    "cpu_ms": 1e3 * statistics.median(cpus),
    "temp_mib": memory.temp_size_in_bytes / 2**20,
    "moved_mib": moved / 2**20,
    "compile_s": compile_s,
    "repeats": len(walls),
  }


def free_bytes() -> int:
  """Memory that is left on the device, or on the host of a CPU."""
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def bench_spec(op, spec, repeats: int, bandwidth: float) -> dict[str, dict]:
  """Rows by the name of the variant; ratios only between correct ones.

  `of_copy` is the rate at which a variant would have to read our inputs and
  write our outputs once, over the bandwidth of a copy: a roofline at 1.
  """
  arrays = op.inputs(spec)
  expected = op.expected(spec, *arrays)
  rows = {
    name: bench_variant(*pair, arrays, expected, op.tolerance(spec), repeats)
    for name, pair in op.variants(spec).items()
  }
  ours = next(iter(rows.values()))
  for row in rows.values():
    if not row.get("correct") or not ours.get("correct"):
      continue
    rate = ours["moved_mib"] * 2**20 / (row["wall_ms"] / 1e3)
    row["of_copy"] = rate / bandwidth
    if row is not ours:
      row["ours_faster_wall"] = row["wall_ms"] / ours["wall_ms"]
      row["ours_faster_cpu"] = row["cpu_ms"] / ours["cpu_ms"]
  return rows
