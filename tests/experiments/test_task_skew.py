"""Label skew against embedding skew: what is judged, and a small run."""

import io
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl.testing import flagsaver
from rich.console import Console

from fedjax_het.core.errors import UserError
from fedjax_het.data import sources
from fedjax_het.training.stats import mean_interval
from fedjax_het_experiments import _task_skew_report as report
from fedjax_het_experiments import _task_skew_runs as runs
from fedjax_het_experiments import task_skew

ALPHAS = (0.1, 0.01)
MISTAKES = {
  "task_skew_tasks": (["inpaintnig"], "did you mean 'inpainting'"),
  "task_skew_alphas": (["0.1", "zero"], "different numbers > 0"),
  "task_skew_size": (72, "20 clients with 72 examples each need 1440"),
  "rounds": (7, "multiple of --eval_every"),
  "cohort_size": (21, "cohort of 21 from 20 clients"),
}


@pytest.mark.parametrize("flag", MISTAKES)
def test_mistakes_are_found_before_anything_is_trained(flag, tmp_path):
  value, message = MISTAKES[flag]
  usual = {"num_clients": 20, "cohort_size": 20, "rounds": 4, "eval_every": 2}
  usual |= {"dataset": "digits", "workdir": str(tmp_path / "run"), flag: value}
  with flagsaver.flagsaver(**usual), pytest.raises(UserError, match=message):
    task_skew.main([])
  assert not (tmp_path / "run").exists()


def test_alphas():
  assert task_skew.alphas(["0.1", "1e-2"]) == (0.1, 0.01)
  for texts in ([], ["0"], ["-1"], ["inf"], ["nan"], ["0.1", "0.10"], ["a"]):
    with pytest.raises(UserError, match="task_skew_alphas"):
      task_skew.alphas(texts)


def _schedule(**changes):
  return runs.Schedule(
    num_clients=12,
    size=30,
    alphas=ALPHAS,
    num_clusters=4,
    cohort_size=12,
    rounds=2,
    eval_every=1,
    batch=10,
    epochs=1,
    embed_epochs=1,
    seeds=(0, 1),
    tune_seeds=1,
    workdir=pathlib.Path("unused"),
    config={},
  )._replace(**changes)


def test_partitions_of_a_seed_deal_the_same_examples_to_equal_clients():
  dataset, schedule = sources.load("digits"), _schedule()
  rows = runs.pool(dataset, schedule, 3)
  assert len(set(rows)) == 360 and set(rows) != set(
    runs.pool(dataset, schedule, 4)
  )
  groups = np.arange(360) % 4
  parts = runs._partitions(dataset.train_y[rows], groups, schedule, 3)
  assert list(parts) == [
    "IID",
    "label 0.1",
    "embedding 0.1",
    "label 0.01",
    "embedding 0.01",
  ]
  for dealt in parts.values():
    assert [len(part) for part in dealt] == [30] * 12
    assert sorted(np.concatenate(dealt)) == list(range(360))
  features = np.eye(4)[groups]  # as far apart as the clusters
  for kind, meter in (("label", "labels"), ("embedding", "clusters")):
    iid, skewed = (
      runs._meters([(parts[arm], dataset.train_y[rows], groups, features)])
      for arm in ("IID", f"{kind} 0.1")
    )
    assert iid[f"beta, {meter}"] < 1.2 < 1.5 < skewed[f"beta, {meter}"]
    if kind == "embedding":
      assert iid["Frechet"] < 0.2 < skewed["Frechet"]


def _outcome(ratio, spread=0.002, seeds=6):
  """Losses under embedding skew are `ratio` times those under label skew."""
  rng = np.random.default_rng(0)
  level = 0.5 + 0.2 * rng.random((seeds, 1))  # seeds differ much: pairs matter
  curves = {}
  for arm in ("IID", *(f"{k} {a:g}" for a in ALPHAS for k in KINDS)):
    factor = ratio if arm.startswith(runs.EMBEDDING) else 1.0
    noise = 1 + spread * rng.normal(size=(seeds, 3))
    curves[arm] = runs.Curve(
      0.001,
      np.array([5, 10, 15]),
      level * factor * noise * [1.2, 1.1, 1],
      1 - level * noise,
      {"classes": np.full(seeds, 3.0), "beta, labels": np.full(seeds, 2.0)},
    )
  groups = [rng.integers(0, 4, 50) for _ in range(seeds)]
  return runs.Outcome(curves, groups, level[:, 0])


KINDS = (runs.LABEL, runs.EMBEDDING)


@pytest.mark.parametrize(
  "ratio, outcome",
  [
    (1.2, "PASS"),
    (1.0, "NULL"),
    (0.98, "NULL"),
    (0.8, "FAIL"),
    (1.05, "FAIL"),  # in doubt
    (np.nan, "FAIL"),  # a seed diverged
  ],
)
def test_verdicts_follow_the_ratio(ratio, outcome):
  judged = report.verdicts({"inpainting": _outcome(ratio)}, ALPHAS)
  assert [verdict.outcome for verdict in judged] == [outcome] * 2
  assert "expected NULL" in judged[0].criterion
  if np.isfinite(ratio):
    assert float(judged[0].measured) == pytest.approx(ratio, abs=0.003)


def test_expectations_are_those_of_the_header():
  judged = report.verdicts({"classification": _outcome(1.0)}, ALPHAS)
  assert all("expected FAIL" in verdict.criterion for verdict in judged)


def test_paired_ratio_is_a_geometric_mean_with_students_interval():
  a, b = np.array([2.0, 6, 3]), np.array([1.0, 2, 4])
  got = report.paired_ratio(a, b, mean_interval)
  assert got.mean == pytest.approx((2 * 3 * 0.75) ** (1 / 3))
  log = np.log([2, 3, 0.75])
  half = 4.302653 * log.std(ddof=1) / 3**0.5  # t of 2 degrees of freedom
  assert np.log(got.high) == pytest.approx(log.mean() + half)
  assert np.log(got.low) == pytest.approx(log.mean() - half)
  bootstrap = report.paired_ratio(a, b)
  assert bootstrap.mean == pytest.approx(got.mean)
  assert 0.75 <= bootstrap.low < bootstrap.mean < bootstrap.high <= 3


@pytest.mark.parametrize("seeds", [1, 4])
def test_report_is_whole(tmp_path, monkeypatch, seeds):
  screen = Console(file=io.StringIO(), width=120)
  monkeypatch.setattr(report, "Console", lambda: screen)
  outcomes = {
    task: _outcome(ratio, seeds=seeds)
    for task, ratio in (("classification", 0.8), ("rotation", 1.3))
  }
  labels = [groups % 2 for groups in outcomes["rotation"].groups]
  report.write_report(
    tmp_path, "A title", outcomes, labels, ALPHAS, seconds=61, notes=["Last."]
  )
  text = (tmp_path / "summary.md").read_text()
  for part in ("# A title", "duration: 1:01", "(ratio.png)", "Last."):
    assert part in text
  table = [line for line in text.splitlines() if line.startswith("| rotation")]
  assert len(table) == 2 + 6 + 5  # verdicts, losses and the embedder, meters
  # both tasks have the same groups here: they agree wholly
  assert "| classification |  | 1.00 |" in text
  for name in ("ratio", "loss"):
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
  points = json.loads((tmp_path / "results.json").read_text())["points"]
  assert len(points) == 2 * 5 and len(points[0]["loss"]) == seeds
  assert "summary.md" in screen.file.getvalue()


@pytest.mark.slow
def test_small_run_and_resume(source_env, tmp_path):
  command = [
    *(sys.executable, "-m", "fedjax_het_experiments", "task_skew"),
    "--task_skew_tasks=classification,inpainting",
    "--task_skew_alphas=0.1",
    "--num_clients=6",
    "--cohort_size=5",
    "--task_skew_size=30",
    "--task_skew_epochs=1",
    "--task_skew_embed_epochs=2",
    "--task_skew_tune_seeds=1",
    "--rounds=4",
    "--eval_every=2",
    "--seeds=2",
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
  first = json.loads((tmp_path / "results.json").read_text())["points"]
  assert [p["partition"] for p in first] == [
    "IID",
    "label 0.1",
    "embedding 0.1",
  ] * 2
  assert np.isfinite([p["loss"] for p in first]).all()
  again = run()
  assert again.returncode == 2 and "--resume" in again.stderr
  # an unfinished last run: half of its rounds are done again
  longer = run("--resume", "--rounds=6")
  assert longer.returncode == 0, longer.stderr
  second = json.loads((tmp_path / "results.json").read_text())["points"]
  for short, long in zip(first, second, strict=True):
    assert long["rounds"] == [2, 4, 6]
    if short["rate"] == long["rate"]:
      np.testing.assert_array_equal(
        np.array(long["loss"])[:, :2], np.array(short["loss"])
      )
