"""Verdicts of `hetero_select`, and the binary on the digits."""

import subprocess
import sys

import numpy as np
import pytest

from fedjax_het.training.arms import Arm
from fedjax_het_experiments import hetero_select as binary


def _arm(name, peak, final):
  accuracy = np.stack([np.full(len(peak), 0.3), peak, final], axis=1)
  return Arm(name, np.array([1, 2, 3]), accuracy)


def _arms(final, drops):
  """Ten seeds whose levels differ by far more than the arms do."""
  rng = np.random.default_rng(0)
  level = rng.normal(scale=0.05, size=10)
  arms = {}
  for mu in (0.0, 0.1):
    for name in binary.SELECTIONS:
      noise = rng.normal(scale=5e-4, size=(2, 10))
      end = 0.7 + level + final[name] + noise[0]
      top = end + np.maximum(drops[name, mu] + noise[1], 0)
      full = binary.arm_name(name, mu)
      arms[full] = _arm(full, top, end)
  return arms


def _verdicts(final, drops):
  final = dict.fromkeys(binary.SELECTIONS, 0.0) | final
  both = {(n, mu): 0.02 for n in binary.SELECTIONS for mu in (0.0, 0.1)}
  return [v.outcome for v in binary.verdicts(_arms(final, both | drops), 0.1)]


def test_verdicts():
  assert _verdicts({}, {}) == ["NULL", "FAIL", "FAIL", "FAIL", "FAIL"]
  steady = {(name, 0.1): 0.005 for name in binary.SELECTIONS}
  assert _verdicts({}, steady)[-1] == "PASS"
  better = _verdicts({binary.SCORED: 0.03}, {(binary.SCORED, 0.1): 0.002})
  assert better[:4] == ["PASS", "PASS", "PASS", "PASS"]
  # far below random: neither a gain nor the declared null
  assert _verdicts({binary.SCORED: -0.03}, {})[0] == "FAIL"


@pytest.mark.slow
def test_the_binary(source_env, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "fedjax_het_experiments",
      "hetero_select",
      "--num_clients=12",
      "--cohort_size=3",
      "--rounds=4",
      "--eval_every=2",
      "--seeds=2",
      "--hetero_select_candidates=5",
      "--tune_seeds=0",
      f"--workdir={tmp_path}",
    ],
    env=source_env,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  text = (tmp_path / "summary.md").read_text()
  assert text.count("| HeteRo-Select, mu 0.1 |") == 3
  assert "virtual time" in text
