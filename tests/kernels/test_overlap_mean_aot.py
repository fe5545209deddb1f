"""Machine code of overlap_mean, sparse_sum and pack_signs; see test_aot.py."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys
from fedjax_het_kernels import aot

json.dump(
  {
    op: {
      name: [item._asdict() for item in items]
      for name, items in aot.reports(op).items()
    }
    for op in sys.argv[1:]
  },
  sys.stdout,
)
"""
WIDE, NARROW = "ld.global.v4.b32", "ld.global.b32"
# Per case: ceiling of registers; loads of 16 bytes; narrow ones, which are one
# a warp (indices, weights, sizes) but for the windows' values.
OVERLAP_MEAN = {
  "rows": (48, 12, 12),
  "rows_sums": (48, 10, 12),
  "rows_bfloat16": (48, 6, 12),
  "rows_of_100": (56, 6, 12),
  "blocks": (80, 4, 3),
  "blocks_sums": (72, 2, 3),
  "blocks_flat": (72, 4, 3),
  "windows": (80, 2, 13),
}
SPARSE_SUM = {
  "weighted": (48, 4, 1),
  "unweighted": (48, 4, 0),
  "fixed": (72, 4, 2),
}
PACK_SIGNS = {
  "float32": (144, 32, 0),
  "bfloat16": (96, 16, 0),
  "sample": (255, 32, 2),
}
LIMITS = {
  "overlap_mean": OVERLAP_MEAN,
  "sparse_sum": SPARSE_SUM,
  "pack_signs": PACK_SIGNS,
}


@pytest.fixture(scope="module")
def reports(compile_env):
  done = subprocess.run(
    [sys.executable, "-c", CODE, *LIMITS],
    env=compile_env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
  "op, case", [(op, case) for op, cases in LIMITS.items() for case in cases]
)
def test_limits(reports, op, case, arch):
  registers, wide, narrow = LIMITS[op][case]
  (report,) = (x for x in reports[op][case] if x["arch"] == arch)
  assert report["stack"] == 0, f"registers spill: {report}"
  assert report["registers"] <= registers
  assert report["shared"] <= 16 * 1024
  loads = {WIDE: wide, NARROW: narrow}
  assert report["loads"] == {k: v for k, v in loads.items() if v}


def test_no_case_is_left_out(reports):
  assert {op: set(cases) for op, cases in reports.items()} == {
    op: set(cases) for op, cases in LIMITS.items()
  }


@pytest.mark.parametrize("arch", [80, 90])
def test_instructions_a_value(reports, arch):
  """4 entries a trip of the loop, 512 columns: far below what memory allows.

  An H100 can issue 44 instructions in the time in which it reads a value.
  """
  (rows,) = (x for x in reports["overlap_mean"]["rows"] if x["arch"] == arch)
  assert 0 < rows["loop"] * rows["threads"] / (4 * 512) <= 6
  (blocks,) = (
    x for x in reports["overlap_mean"]["blocks"] if x["arch"] == arch
  )
  assert 0 < blocks["loop"] * blocks["threads"] / (16 * 64) <= 18
