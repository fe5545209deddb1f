"""Machine code for sm_80 and sm_90, without a GPU: a guard of performance."""

import json
import subprocess
import sys

import pytest

from fedjax_het_kernels.aot import loop

# Ceilings: registers, and instructions a mask bit in the innermost loop.
# (bits, per program and trip of that loop, at the shapes in specs.AOT)
SIGN_VOTES = {
  "planes": {"registers": 72, "bits": 8 * 512 * 32, "per_bit": 0.2},
  "finish": {"registers": 72},
  "select": {"registers": 104, "bits": 8 * 128 * 32, "per_bit": 3.4},
  "clusters": {"registers": 168, "tensor": True},
}
COUNTS = {
  "uint8": {"registers": 72, "bits": 8 * 128 * 32, "per_bit": 0.8},
  "uint16": {"registers": 104, "bits": 8 * 128 * 32, "per_bit": 1.1},
}


@pytest.fixture(scope="module")
def reports(compile_env, tmp_path_factory):
  path = tmp_path_factory.mktemp("aot") / "reports.json"
  command = ["-m", "fedjax_het_kernels.aot", "--op=sign_votes"]
  done = subprocess.run(
    [sys.executable, *command, f"--json={path}"],
    env=compile_env,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(path.read_text())["sign_votes"]


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
  "case", ["equal", "uint8", "uint16", "int32", "float32", "clusters"]
)
def test_sign_votes(reports, case, arch):
  found = [report for report in reports[case] if report["arch"] == arch]
  assert found
  for report in found:
    limits = COUNTS.get(case) or SIGN_VOTES[report["kernel"]]
    assert report["stack"] == 0, f"registers spill: {report}"
    assert report["registers"] <= limits["registers"]
    assert report["shared"] <= 48 * 1024
    assert report["tensor"] == limits.get("tensor", False)
    if "bits" in limits:
      per_bit = report["loop"] * report["threads"] / limits["bits"]
      assert 0 < per_bit <= limits["per_bit"], report


@pytest.mark.parametrize("arch", [80, 90])
def test_loads_of_planes_are_16_bytes_wide(reports, arch):
  (planes,) = (
    report
    for report in reports["equal"]
    if report["arch"] == arch and report["kernel"] == "planes"
  )
  assert planes["loads"] == {"ld.global.v4.b32": 8}


def test_interpreted_triton_is_refused(compile_env):
  done = subprocess.run(
    [sys.executable, "-m", "fedjax_het_kernels.aot"],
    env={**compile_env, "TRITON_INTERPRET": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert "unset it" in done.stderr


def test_largest_innermost_loop():
  sass = """
    .L_x_1:
        /*0010*/                   MOV R1, c[0x0][0x28] ;
    .L_x_2:
        /*0020*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0030*/                   LOP3.LUT R3, R3, R2, RZ, 0x3c, !PT ;
        /*0040*/              @P0  BRA `(.L_x_2) ;
        /*0050*/              @!P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
  """
  assert [line.split()[0] for line in loop(sass)] == [
    "IADD3",
    "LOP3.LUT",
    "BRA",
  ]
  assert loop("        /*0010*/   EXIT ;") == []
