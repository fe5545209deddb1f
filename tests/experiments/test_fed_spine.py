"""Verdicts of `fed_spine`, its figures by round, and the binary on digits."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fedjax_het.core.cohort import Cohort
from fedjax_het.training.arms import Arm
from fedjax_het_experiments import _spine_report as report
from fedjax_het_experiments import fed_spine as binary

SEEDS, ROUNDS = 4, 12
RNG = np.random.default_rng(0)


def _noisy(values, size=1e-3):
  values = np.broadcast_to(np.asarray(values, float), (SEEDS, ROUNDS))
  return values + RNG.normal(scale=size, size=(SEEDS, ROUNDS))


def _curves(spread, longest, sparsity):
  return report.Curves(
    _noisy(longest),
    _noisy(spread),
    _noisy(sparsity),
    _noisy(4),
    {"layer_0/heads": _noisy(0.5)},
  )


def _outcomes(
  spread=(3.0, 2.0), longest=4.0, sparsity=0.5, lora=0.75, best=0.70
):
  curves = {
    binary.SPINE: _curves(np.linspace(*spread, ROUNDS), longest, sparsity),
    binary.FIXED: _curves(3.0, 8.0, 0.5),
  }
  curve = np.linspace(0.2, 0.8, ROUNDS)
  arms = {}
  for name, found in curves.items():
    arm = Arm(name, np.arange(1, ROUNDS + 1), _noisy(curve))
    arms[name] = report.timed(arm, found)
  of_seed = RNG.normal(scale=0.05, size=SEEDS)  # far more than between arms
  levels = {
    binary.FIXED: lora,
    binary.RANDOM: 0.70,
    binary.SAME: 0.71,
    binary.MAGNITUDE: best,
  }
  by_judge = {
    name: {report.JUDGES[0]: level + of_seed + RNG.normal(0, 1e-3, SEEDS)}
    for name, level in levels.items()
  }
  rows = binary.verdicts(arms, curves, by_judge, 0.7)
  return [row.outcome for row in rows]


def test_verdicts():
  assert _outcomes() == ["PASS"] * 5
  assert _outcomes(spread=(3.0, 3.5))[0] == "FAIL"  # does not fall
  assert _outcomes(spread=(5.0, 4.0))[0] == "FAIL"  # falls, above the fixed
  assert _outcomes(longest=9.0)[1] == "FAIL"
  assert _outcomes(sparsity=0.6)[1] == "FAIL"  # not an equal sparsity
  assert _outcomes(lora=0.69)[2:] == ["FAIL"] * 3
  assert _outcomes(best=0.8)[2:] == ["PASS", "PASS", "FAIL"]


def test_a_round_lasts_as_long_as_the_slowest_that_counts():
  seconds = np.array([[[1.0, 9.0, 2.0, 5.0]]], np.float32)
  ok = np.array([[[True, False, True, True]]])
  ones = np.ones_like(seconds)
  seen = report.summarise(
    Cohort(
      ids=np.arange(4)[None, None],
      ok=ok,
      present=np.ones_like(ok),
      weight=ones * ok,
      steps=ones,
      up_bytes=ones,
      down_bytes=ones,
      seconds=None,
      joules=None,
      metrics={"seconds": seconds, "sparsity": seconds, "rank": ones},
    )
  )
  assert seen["round_seconds"] == 5.0
  assert seen["spread"] == 2.5
  np.testing.assert_allclose(seen["mean_sparsity"], 8 / 3)
  assert seen["dropped"] == 1


def test_devices_span_the_declared_range():
  a = np.asarray(binary.make_costs(200).step_seconds)
  assert 0.1 <= a.min() < 0.12 and 0.9 < a.max() <= 1.0
  assert abs(np.median(np.log10(a)) + 0.5) < 0.15  # log-uniform


@pytest.mark.slow
def test_the_binary_on_digits(source_env, tmp_path):
  command = [
    *(sys.executable, "-m", "fedjax_het_experiments", "fed_spine"),
    *("--dataset=digits", "--num_clients=6", "--cohort_size=6"),
    *("--rounds=6", "--eval_every=3", "--seeds=2", "--tune_seeds=0"),
    *("--fed_spine_width=16", "--fed_spine_hidden=16", "--fed_spine_every=2"),
    *("--fed_spine_public=100", "--fed_spine_heldout=100"),
    f"--workdir={tmp_path}",
  ]
  done = subprocess.run(
    command,
    env={**source_env, "COLUMNS": "200"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  text = (tmp_path / "summary.md").read_text()
  assert text.count("| HetLoRA |") == 4  # arms, target, times, judges
  for name in ("spread.png", "density.png", "accuracy_time.png"):
    assert os.path.getsize(tmp_path / name) > 10_000
    assert name in text
