"""Verdicts of `pfed_gate`, and the binary on the digits."""

import subprocess
import sys

import numpy as np
import pytest
import tiny

from fedjax_het.training.arms import Arm
from fedjax_het_experiments import _gate_report as report
from fedjax_het_experiments import _shelf
from fedjax_het_experiments import pfed_gate as binary

NAMES = (*binary._SHELF, binary.HETERO_FL, *report.GATED, binary.FED_MASK)


def _verdicts(final):
  """Five seeds whose levels differ by far more than the arms do."""
  rng = np.random.default_rng(0)
  level, arms = rng.normal(scale=0.05, size=5), {}
  for name in NAMES:
    end = 0.8 + level + final.get(name, 0.0) + rng.normal(scale=5e-4, size=5)
    accuracy = np.stack([np.full(5, 0.3), end], axis=1)
    arms[name] = Arm(name, np.array([1, 2]), accuracy)
  return [verdict.outcome for verdict in report.verdicts(arms)]


def test_verdicts():
  expected = _verdicts({"FedAvg": -0.05, "FedAvg + fine-tuning": 0.02})
  assert expected == ["PASS", "PASS", "PASS", "FAIL", "NULL"]
  assert _verdicts({})[2:4] == ["FAIL", "FAIL"]
  # better than dense is within a point, too; 3 points below is not
  sparse = {report.gated(0.5): 0.03, report.gated(0.3): -0.03}
  assert _verdicts(sparse) == ["PASS", "FAIL", "PASS", "PASS", "PASS"]
  # the plain mean far ahead is neither a gain nor the declared null
  assert _verdicts({report.gated(0.5, counted=False): 0.03})[4] == "FAIL"


def test_every_arm_is_tuned_with_the_same_effort():
  problem = _shelf.Problem(tiny.mlp(), 7, 8, 1, cohort_steps=0)
  methods = binary.methods(tiny.INPUT_SHAPE, problem, 5)
  assert [method.name for method in methods] == list(NAMES)
  assert {len(set(method.rates)) for method in methods} == {6}
  assert {method.judged_by for method in methods} == {"client_mean"}


@pytest.mark.slow
def test_the_binary(source_env, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "fedjax_het_experiments",
      "pfed_gate",
      "--num_clients=8",
      "--cohort_size=8",
      "--rounds=4",
      "--eval_every=2",
      "--seeds=2",
      "--tune_seeds=0",
      "--partition=inner_dirichlet:0.4,size=60",
      f"--workdir={tmp_path}",
    ],
    env=source_env,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stderr
  text = (tmp_path / "summary.md").read_text()
  # the arms, the evaluations, the densities
  assert text.count("| pFedGate s=0.5 |") == 3
  row = next(
    line
    for line in text.splitlines()
    if "pFedGate s=0.3" in line and "±" in line
  )
  used, sent = (float(cell.split("±")[0]) for cell in row.split("|")[-3:-1])
  assert 20 < used <= 30 and sent >= used
  assert "| pFedGate s=1 | 100.0 [100.0, 100.0] |" in text
  assert (tmp_path / "density.png").stat().st_size > 10_000
