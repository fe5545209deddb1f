"""Times every op; 2 minutes on 2 CPU cores, under 8 on a GPU.

Each variant is compiled, checked against the op's NumPy reference, warmed up
and timed.  No ratio is printed for a variant whose check failed, none at all if
ours failed, and then nothing is written.  Otherwise OUT/<device>.json holds the
figures, OUT/<device>.png the rates beside the device's measured copy bandwidth,
and OUT/README.md the tables of every device in OUT.
"""

import argparse
import pathlib
import sys

import jax

from fedjax_het_kernels.bench import measure, report
from fedjax_het_kernels.bench.ops import OPS

RESULTS = pathlib.Path(__file__).parents[2] / "results"


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
  bandwidth = measure.copy_bandwidth()
  print(f"copy bandwidth: {bandwidth / 1e9:.1f} GB/s\n", flush=True)
  ops, failed = {}, []
  for name, op in OPS.items():
    if flags.op not in (None, name):
      continue
    for spec in op.specs:
      if not wanted(spec, flags.spec):
        continue
      rows = measure.bench_spec(op, spec, flags.repeats, bandwidth)
      print(report.table(name, repr(spec), rows), flush=True)
      ops.setdefault(name, {})[spec.name] = rows
      if not next(iter(rows.values())).get("correct"):
        failed.append(f"{name} {spec.name}")
  if not ops:
    parser.error(f"no op has a spec {flags.spec!r}")
  if failed:
    print(f"wrong or not run, so nothing is written: {', '.join(failed)}")
    return 1
  report.write(flags.out, report.result(argv, bandwidth, ops))
  print(f"written to {flags.out}")
  return 0


def wanted(spec, name: str | None) -> bool:
  """The named shape, or those of this kind of device."""
  if name:
    return spec.name == name
  return spec.bench or (spec.gpu and jax.default_backend() == "gpu")


if __name__ == "__main__":
  sys.exit(main())
