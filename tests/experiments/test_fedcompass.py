"""Verdicts of `fedcompass`, its contenders, and the binary on the digits."""

import json
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from fedjax_het.training.arms import Arm
from fedjax_het_experiments import _async_runs
from fedjax_het_experiments import _compass_report as report
from fedjax_het_experiments import fedcompass as binary


def arm(name, speed, final, seeds=5):
  """Rises to `final` along 1 - exp(-speed t), with a little noise."""
  rng = np.random.default_rng(len(name))
  seconds = np.tile(np.arange(1.0, 41), (seeds, 1))
  rates = speed * np.exp(0.03 * rng.normal(size=(seeds, 1)))
  accuracy = final * (1 - np.exp(-rates * seconds))
  return Arm(name, seconds[0], accuracy, seconds=seconds)


def arms(compass, others=0.8):
  names = ["FedAvg", *report.ASYNCHRONOUS]
  return [arm(n, 0.1, others) for n in names] + [
    arm(report.COMPASS, compass, 0.8)
  ]


def outcomes(fleet, *args):
  return [v.outcome for v in report.verdicts(fleet, arms(*args), 0.6)]


def test_verdicts():
  assert outcomes("exponential", 0.3) == ["PASS", "PASS"]
  assert outcomes("exponential", 0.12) == ["FAIL", "PASS"]
  assert outcomes("constant", 0.1) == ["NULL", "PASS"]
  assert outcomes("constant", 0.3)[0] == "FAIL"
  assert outcomes("exponential", 0.3, 0.9)[1] == "FAIL"


def test_the_ratio_is_of_times_to_the_target():
  """1 - exp(-0.3 t) = 3 / 4 takes a third of the time of 1 - exp(-0.1 t)."""
  ratio = report.geometric(report.ratios(arms(0.3), 0.6)[report.COMPASS])
  assert ratio.mean == pytest.approx(1 / 3, rel=0.15)
  never = report.ratios([*arms(0.3), arm("slow", 0.001, 0.8)], 0.6)["slow"]
  assert (never > 2).all() and np.isfinite(never).all()


def test_every_contender_tries_as_much_and_keeps_clients_busy():
  problem = _async_runs.Problem(
    None,
    lambda task, client, steps, now: 0.1 * steps * (1 + client),
    np.arange(1.0, 7.0),
    0.1 * 50 * np.arange(1.0, 7.0),
    300.0,
    0,
  )
  assert flags.FLAGS["fedcompass_max_steps"].value == 50
  busy = {}
  for contender in binary.contenders():
    assert len(contender.knobs) == 3
    for knob in contender.knobs:
      found = _async_runs.figures(contender, problem, knob)
      assert found["merges"] > 5
    busy[contender.name] = found["busy"]
  assert busy["FedAsync"] > 0.99 and busy["FedAvg"] < 0.7
  assert busy[report.COMPASS] > busy["FedAvg"] + 0.1


@pytest.mark.slow
def test_the_binary(source_env, tmp_path):
  command = [
    sys.executable,
    "-m",
    "fedjax_het_experiments",
    "fedcompass",
    "--num_clients=4",
    "--partition=class_shares:low=5,high=6",
    "--rounds=2",
    "--seeds=2",
    "--tune_seeds=0",
    "--fedcompass_fleets=exponential",
    "--fedcompass_min_steps=2",
    "--fedcompass_max_steps=6",
    f"--workdir={tmp_path}",
  ]

  def run(*more):
    return subprocess.run(
      [*command, *more],
      env=source_env,
      capture_output=True,
      text=True,
      timeout=900,
    )

  done = run()
  assert done.returncode == 0, done.stderr
  folder = tmp_path / "exponential"
  text = (folder / "summary.md").read_text()
  assert text.count("| FedCompass |") == 3 and "none is ever lost" in text
  assert (folder / "gantt.png").stat().st_size > 10_000
  final = folder / "final" / "FedCompass-0.03-2.7-seed1"
  records = map(json.loads, (final / "metrics.jsonl").read_text().splitlines())
  assert sum("eval/accuracy" in r for r in records) == 4
  again = run("--resume")
  assert again.returncode == 0, again.stderr
  other = run("--resume", "--fedcompass_slack=1.5")
  assert other.returncode == 2 and "fedcompass_slack" in other.stderr
