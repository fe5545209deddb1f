"""Scenario, verdicts and report of `staleness`, and the binary on digits."""

import subprocess
import sys

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import partition, sources
from fedjax_het.training.arms import Arm
from fedjax_het_experiments import _staleness_report as report
from fedjax_het_experiments import _staleness_scenario as scenario

NAMES = (
  *(report.ORACLE, report.DIRECT, report.WEIGHTED, report.ASYNC),
  *(report.FIRST_ORDER, report.DROPPED, report.INVERTED, report.UNSWITCHED),
)
LABELS = np.arange(600) % 10


@pytest.mark.parametrize("affected", [0, 5])
def test_only_slow_clients_hold_the_class(affected):
  spec = scenario.partition_of("single", affected)
  slow = scenario.slow_clients(30, 10, affected)
  assert slow.tolist() == [affected, affected + 10, affected + 20]
  for k, part in enumerate(partition.parse(spec, LABELS, 30, seed=3)):
    assert set(LABELS[part]) == {k % 10}


def test_with_dirichlet_those_with_most_of_the_class_are_slow():
  spec = scenario.partition_of("dirichlet:0.5", 2)
  parts = partition.parse(spec, LABELS, 20, seed=1)
  held = np.array([np.sum(LABELS[part] == 2) for part in parts])
  slow = scenario.slow_clients(20, 10, 2)
  others = np.setdiff1d(np.arange(20), slow)
  assert held[slow].min() >= held[others].max() and held.sum() == 60
  plain = partition.dirichlet(LABELS, 20, alpha=0.5, min_size=2, seed=1)
  assert {tuple(p) for p in parts} == {tuple(p) for p in plain}


def test_pooled_images_are_means_of_squares():
  digits = sources.load("digits")
  pooled = scenario.pooled_images(digits, 2)
  assert pooled.test_x.shape[1:] == (4, 4, 1)
  assert pooled.train_x[7, 1, 2, 0] == pytest.approx(
    digits.train_x[7, 2:4, 4:6, 0].mean(), rel=1e-5
  )
  with pytest.raises(UserError, match="do not divide"):
    scenario.pooled_images(digits, 3)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: scenario.check_cycle(100, 10, 35), "no multiple of the cycle"),
    (lambda: scenario.check_cycle(100, 10, 0), "no multiple of the cycle"),
    (lambda: scenario.check_cycle(100, 30, 40), "does not divide"),
    (lambda: scenario.slow_clients(100, 10, 10), "from 0 to 9"),
    (lambda: scenario.slow_clients(5, 10, 7), "at least --num_clients=8"),
    (lambda: scenario.partition_of("dirichlet:0", 5), "ALPHA > 0"),
    (lambda: scenario.partition_of("shard:2", 5), "give single"),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(UserError, match=message):
    call()


def _records(ratio, delay=3, rounds=12, seeds=4):
  """Records as `inverted_fed_avg` leaves them; errors halve every round."""
  rng = np.random.default_rng(0)
  records = []
  for r in range(1, rounds + 1):
    of = r - 2 - delay  # the round whose estimate was judged last
    e2 = 0.5**of * (1 + 0.01 * rng.normal(size=seeds)) * (of >= delay)
    record = {
      "round": r,
      "e1": (ratio * e2).tolist(),
      "e2": e2.tolist(),
      "cosine1": [0.9] * seeds,
      "cosine2": [0.8] * seeds,
      "switched": [float(r > 9)] * seeds,
      "inversion_error": [0.2] * seeds,
    }
    records.append(record)
  return records


def test_errors_are_dated_by_the_round_of_the_estimate():
  errors = report.judged(_records(0.4), delay=3)
  assert errors.rounds.tolist() == [3, 4, 5, 6, 7]
  np.testing.assert_allclose(errors.e2.mean(0), 0.5**errors.rounds, rtol=0.03)
  np.testing.assert_allclose(report.early_ratio(errors, 3), 0.4)


def _verdicts(ratio, area, final, unswitched=0.0):
  """Outcomes if `inverted` is above all others by area, final (points)."""
  rng = np.random.default_rng(1)
  level = 0.6 + 0.1 * rng.random((5, 1))
  arms, curves = {}, {}
  for name in NAMES:
    noise = 1e-3 * rng.normal(size=(5, 4))
    gain = {report.INVERTED: 1, report.UNSWITCHED: unswitched}.get(name, 0)
    arms[name] = Arm(name, np.arange(4), level + noise + gain * final / 100)
    curves[name] = level + noise + gain * area / 100
  errors = report.judged(_records(ratio), delay=3)
  return [v.outcome for v in report.verdicts(arms, curves, errors, 3)]


def test_verdicts():
  assert _verdicts(0.4, 5, 2) == ["PASS"] * 6
  assert _verdicts(0.7, 5, 2)[0] == "FAIL"
  worse = _verdicts(0.4, -5, -3)
  assert worse[1:] == ["FAIL"] * 5
  equal = _verdicts(0.4, 0, 0)  # not below, but nothing above either
  assert equal == ["PASS", "FAIL", "FAIL", "PASS", "PASS", "FAIL"]
  assert _verdicts(0.4, 5, 2, unswitched=1.0)[-1] == "FAIL"


@pytest.mark.slow
def test_the_binary(source_env, tmp_path):
  done = subprocess.run(
    [
      *(sys.executable, "-m", "fedjax_het_experiments", "staleness"),
      "--num_clients=20",
      "--cohort_size=10",
      "--staleness_delay=2",
      "--staleness_pool=2",
      "--staleness_hidden=8",
      "--staleness_rows=4",
      "--staleness_iterations=5",
      "--rounds=8",
      "--eval_every=4",
      "--seeds=2",
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
  assert text.count("| inverted, no switch |") == 2
  assert "data-reconstruction attack" in text
  for name in ("affected_class", "errors"):
    assert f"({name}.png)" in text
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
