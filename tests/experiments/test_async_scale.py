"""`async_scale` on few clients: both ways to train end with one model."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_binary(source_env, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "fedjax_het_experiments",
      "async_scale",
      "--async_scale_clients=30",
      "--async_scale_in_flight=10",
      "--async_scale_scheduled=200",
      "--async_scale_trained=60",
      "--async_scale_repeats=1",
      f"--workdir={tmp_path}",
    ],
    env=source_env,
    capture_output=True,
    text=True,
    timeout=900,
  )
  if "fashion_mnist" in done.stderr and done.returncode == 2:
    pytest.skip("Fashion-MNIST is not installed: " + done.stderr.strip())
  assert done.returncode == 0, done.stderr
  points = json.loads((tmp_path / "results.json").read_text())["points"]
  assert {p["part"] for p in points} == {"schedule", "training"}
  (training,) = (p for p in points if p["part"] == "training")
  assert training["largest difference of the models"] < 1e-4
  assert training["wave size"] > 2
  assert "one by one" in (tmp_path / "summary.md").read_text()
