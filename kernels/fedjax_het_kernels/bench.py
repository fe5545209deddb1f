"""Times every op against other ways to compute the same.

  python -m fedjax_het_kernels.bench [--op sign_votes] [--spec million]

Each variant is compiled, checked against the op's NumPy reference, warmed up
and timed: median wall and process CPU time, temporary memory as XLA planned
it.  No ratio is printed for a variant whose check failed, none at all if ours
failed, and then nothing is written.  Otherwise OUT/<device>.json holds the
figures, and OUT/README.md the tables of every device in OUT.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het_kernels.pack_signs import reference as pack_reference
from fedjax_het_kernels.pack_signs import rivals as pack_rivals
from fedjax_het_kernels.pack_signs import specs as pack_specs
from fedjax_het_kernels.sign_votes import reference as votes_reference
from fedjax_het_kernels.sign_votes import rivals as votes_rivals
from fedjax_het_kernels.sign_votes import specs as votes_specs

RESULTS = pathlib.Path(__file__).parents[1] / "results"
SECONDS = 20  # a slow variant is repeated at least 3 times, then until here


class Op(NamedTuple):
  """What the benchmark needs to know of an op.

  specs: all named shapes; those with `bench` set run by default.
  inputs: spec -> arrays.
  expected: (spec, *arrays) -> what every variant has to return.
  variants: spec -> {name: (prepare, run)}, ours first.
  tolerance: largest absolute error allowed.
  """

  specs: tuple
  inputs: Callable[[Any], tuple]
  expected: Callable[..., np.ndarray]
  variants: Callable[[Any], dict[str, tuple[Callable, Callable]]]
  tolerance: float


OPS = {
  "sign_votes": Op(
    votes_specs.SPECS,
    votes_specs.inputs,
    lambda spec, *args: votes_reference.sign_votes(*args, size=spec.size),
    votes_rivals.variants,
    1e-5,
  ),
  "pack_signs": Op(
    pack_specs.SPECS,
    pack_specs.inputs,
    lambda spec, values: np.stack(
      [pack_reference.pack_signs(row) for row in values]
    ),
    pack_rivals.variants,
    0,
  ),
}


def bench_variant(
  prepare, run, arrays, expected, tolerance, repeats
) -> dict[str, Any]:
  """One row of the table, or why there is none."""
  shapes = jax.eval_shape(prepare, *arrays)
  start = time.perf_counter()
  compiled = jax.jit(run).lower(*shapes).compile()
  compile_s = time.perf_counter() - start
  memory: Any = compiled.memory_analysis()
  needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  if needed > 0.6 * free_bytes():
    return {"skipped": f"needs {needed / 2**30:.1f} GiB"}
  args = jax.block_until_ready(jax.jit(prepare)(*arrays))
  out = np.asarray(compiled(*args))
  # In float64: the difference of two unsigned integers would wrap.
  error = np.abs(np.float64(out) - np.float64(expected)).max(initial=0)
  walls, cpus, begin = [], [], time.perf_counter()
  while len(walls) < repeats:
    if len(walls) >= 3 and time.perf_counter() - begin > SECONDS:
      break
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(compiled(*args))
    walls.append(time.perf_counter() - wall)
    cpus.append(time.process_time() - cpu)
  return {
    "correct": bool(error <= tolerance),  # False for NaN, too
    "max_error": float(error),
    "wall_ms": 1e3 * statistics.median(walls),
    "cpu_ms": 1e3 * statistics.median(cpus),
    "temp_mib": memory.temp_size_in_bytes / 2**20,
    "compile_s": compile_s,
    "repeats": len(walls),
  }


def free_bytes() -> int:
  """Memory that is left on the device, or on the host of a CPU."""
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"] - stats["bytes_in_use"]
  return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def bench_spec(op: Op, spec, repeats: int) -> dict[str, dict]:
  """Rows by the name of the variant; ratios only between correct ones."""
  arrays = op.inputs(spec)
  expected = op.expected(spec, *arrays)
  rows = {
    name: bench_variant(*pair, arrays, expected, op.tolerance, repeats)
    for name, pair in op.variants(spec).items()
  }
  ours = next(iter(rows.values()))
  for row in rows.values():
    if row is not ours and row.get("correct") and ours.get("correct"):
      row["ours_faster_wall"] = row["wall_ms"] / ours["wall_ms"]
      row["ours_faster_cpu"] = row["cpu_ms"] / ours["cpu_ms"]
  return rows


def table(op: str, spec: str, rows: dict[str, dict]) -> str:
  """A Markdown table."""
  lines = [
    f"**{op}, {spec}**",
    "",
    "| variant | wall ms | CPU ms | temporary MiB | max error"
    " | ours is faster by (wall / CPU) |",
    "|---|---|---|---|---|---|",
  ]
  for name, row in rows.items():
    if "skipped" in row:
      lines.append(f"| {name} | skipped: {row['skipped']} | | | | |")
      continue
    ratio = ""
    if "ours_faster_wall" in row:
      ratio = f"{row['ours_faster_wall']:.1f}x / {row['ours_faster_cpu']:.1f}x"
    error = f"{row['max_error']:.1e}" if row["correct"] else "**WRONG**"
    lines.append(
      f"| {name} | {row['wall_ms']:.1f} | {row['cpu_ms']:.1f}"
      f" | {row['temp_mib']:.1f} | {error} | {ratio} |"
    )
  return "\n".join(lines) + "\n"


def device_name() -> str:
  """E.g. "NVIDIA H100 80GB HBM3" or "AMD EPYC, 2 cores"."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    return device.device_kind
  info = pathlib.Path("/proc/cpuinfo")
  found = info.exists() and re.search(r"model name\s*: (.+)", info.read_text())
  model = found.group(1).strip() if found else platform.machine()
  return f"{model}, {os.cpu_count()} cores"


def write(out: pathlib.Path, result: dict) -> None:
  """Writes the JSON of this device, then the tables of all devices."""
  out.mkdir(parents=True, exist_ok=True)
  slug = re.sub(r"[^a-z0-9]+", "_", result["device"].lower()).strip("_")
  path = out / f"{slug}.json"
  path.write_text(json.dumps(result, indent=2) + "\n")
  text = [
    "# Measured kernels\n\nMade by `python -m fedjax_het_kernels.bench`.\n"
  ]
  for path in sorted(out.glob("*.json")):
    result = json.loads(path.read_text())
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    text.append(
      f"## {result['device']}\n\n`{result['command']}`, {result['date']};"
      f" {versions}; load average at the start {result['load']:.1f}.\n"
    )
    for op, specs in result["ops"].items():
      text += [table(op, spec, rows) for spec, rows in specs.items()]
  (out / "README.md").write_text("\n".join(text))


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m fedjax_het_kernels.bench",
    description="Times every op against other ways to compute the same.",
  )
  parser.add_argument("--op", choices=OPS, help="only this op")
  parser.add_argument("--spec", help="only this shape; any of the op's specs")
  parser.add_argument("--repeats", type=int, default=15)
  parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
  argv = sys.argv[1:] if argv is None else argv
  flags = parser.parse_args(argv)
  result = {
    "device": device_name(),
    "command": " ".join(["python -m fedjax_het_kernels.bench", *argv]),
    "date": datetime.date.today().isoformat(),
    "load": os.getloadavg()[0],
    "versions": {
      "python": platform.python_version(),
      "jax": jax.__version__,
      "jaxlib": importlib.metadata.version("jaxlib"),
      "numpy": np.__version__,
    },
    "ops": {},
  }
  failed = []
  for name, op in OPS.items():
    if flags.op not in (None, name):
      continue
    for spec in op.specs:
      if flags.spec != spec.name if flags.spec else not spec.bench:
        continue
      rows = bench_spec(op, spec, flags.repeats)
      print(table(name, repr(spec), rows), flush=True)
      result["ops"].setdefault(name, {})[spec.name] = rows
      if not next(iter(rows.values())).get("correct"):
        failed.append(f"{name} {spec.name}")
  if not result["ops"]:
    parser.error(f"no op has a spec {flags.spec!r}")
  if failed:
    print(f"wrong or not run, so nothing is written: {', '.join(failed)}")
    return 1
  write(flags.out, result)
  print(f"written to {flags.out}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
