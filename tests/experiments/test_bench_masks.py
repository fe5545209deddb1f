"""The benchmark of personal masks, on a tiny network."""

import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def run(source_env, tmp_path_factory):
  folder = tmp_path_factory.mktemp("bench_masks")

  def call(*flags):
    return subprocess.run(
      [
        sys.executable,
        "-m",
        "fedjax_het_experiments",
        "bench_masks",
        f"--workdir={folder}",
        "--bench_masks_hidden=64",
        "--bench_masks_batch=2",
        "--bench_masks_seconds=0",
        *flags,
      ],
      capture_output=True,
      text=True,
      env=source_env,
      check=False,
    ), folder

  return call


def test_memory_of_each_way(run):
  done, folder = run("--bench_masks_clients=6,24", "--bench_masks_chunk=4")
  assert done.returncode == 0, done.stderr
  points = json.loads((folder / "results.json").read_text())["points"]
  found = {(p["way"], p["clients"]): p for p in points}
  weights = 784 * 64 + 64 * 10
  words = 25 * 64 + 2 * 10
  for clients in (6, 24):
    packed = found["packed", clients]["bytes"]
    dense = found["dense copies", clients]["bytes"]
    chunks = found["dense copies in chunks", clients]
    assert 4 * (clients * words + weights) <= packed < dense
    assert dense >= 4 * clients * weights
    assert chunks["temporary_bytes"] >= 4 * 3 * weights  # 3 or 4 at a time
    assert all(len(found[way, clients]["seconds"]) for way, _ in found)
  packed, dense = (
    found[way, 24]["bytes"] - found[way, 6]["bytes"]
    for way in ("packed", "dense copies")
  )
  assert packed < dense / 16  # a client more: 1 bit a weight, and activations
  assert (folder / "masks.png").read_bytes().startswith(b"\x89PNG")
  assert "| 24 |" in (folder / "summary.md").read_text()


@pytest.mark.parametrize("clients", ["ten", "0", "-3,4"])
def test_wrong_numbers_of_clients(run, clients):
  done, _ = run(f"--bench_masks_clients={clients}")
  assert done.returncode == 2
  assert f"--bench_masks_clients={clients}: give numbers" in done.stderr
