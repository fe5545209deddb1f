"""The benchmark of the planners: its files, figures and verdicts."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar.types import Plan, Task
from fedjax_het_experiments import (
  _planner_pictures,
  _planner_report,
  plan_bench,
)
from fedjax_het_experiments.plan_bench import Row, Setting


def setting(static, shapes, source="wikipedia", **changed):
  """A setting whose two batches took these seconds."""
  row = Row(1.0, 0.9, 0.98, 0.1, 0.005)._replace(**changed)
  rows = [
    {
      "static": row._replace(seconds=a),
      "adaptive": row._replace(seconds=(a + b) / 2),
      "greedy": row._replace(seconds=(a + b) / 2),
      "shapes": row._replace(seconds=b, lower=0.9 * b, split=0.98 * b),
      "tree": row._replace(seconds=b / 1.1, lower=0.8 * b),
    }
    for a, b in zip(static, shapes, strict=True)
  ]
  return Setting("7b", 192, source, rows, {})


def outcome(settings, words):
  (found,) = [v for v in _planner_report.verdicts(settings) if words in v.claim]
  return found


def test_verdicts_compare_with_what_was_published():
  """1.72 for GPT 7B with 192K tokens on Wikipedia."""
  found = outcome([setting([1.8, 2.7], [1.0, 1.49])], "mixed degrees")
  assert found.outcome == "PASS" and "1.72" in found.criterion
  assert found.measured == pytest.approx((1.8 + 2.7 / 1.49) / 2)
  assert outcome([setting([1.7, 1.7], [1, 1])], "mixed").outcome == "FAIL"
  # one good batch and a bad one: the interval leaves it open
  assert outcome([setting([1.5, 2.4], [1, 1])], "mixed").outcome == "FAIL"


def test_verdicts_name_the_hardest_setting():
  easy = setting([2.0, 2.0], [1.0, 1.0], "github_like")
  hard = setting([1.3, 1.3], [1.0, 1.0], "commoncrawl_like")
  found = outcome([easy, hard], "mixtures")
  assert found.outcome == "PASS" and "commoncrawl_like" in found.measured
  worse = setting([1.1, 1.1], [1.0, 1.0], "commoncrawl_like")
  assert outcome([easy, worse], "mixtures").outcome == "FAIL"
  slow = setting([2.0, 2.0], [1.0, 1.0], cpu=0.8)
  assert outcome([easy, slow], "shapes plans fast").outcome == "FAIL"
  assert outcome([easy], "shapes plans fast").outcome == "PASS"
  assert outcome([easy], "near the optimum").outcome == "PASS"
  loose = setting([2.0, 2.0], [1.0, 1.0], many_gap=0.02)
  assert outcome([easy], "packed well").outcome == "PASS"
  assert outcome([loose], "packed well").outcome == "FAIL"
  assert outcome([easy], "without barriers").outcome == "PASS"


def test_the_program_is_judged_where_it_ran():
  one = setting([2.0, 2.0], [1.0, 1.0])
  assert not [
    v for v in _planner_report.verdicts([one]) if "program" in v.claim
  ]
  one.rows[0]["milp"] = one.rows[0]["shapes"]._replace(seconds=1.02)
  assert outcome([one], "no program").outcome == "PASS"
  one.rows[0]["milp"] = one.rows[0]["shapes"]._replace(seconds=0.99)
  assert outcome([one], "no program").outcome == "FAIL"


def test_static_degrees_are_the_published_ones():
  assert plan_bench.static_degree("github_like", 192) == 32
  assert plan_bench.static_degree("github_like", 384) == 64
  assert plan_bench.static_degree("wikipedia", 192) == 64


def test_a_small_run_writes_everything(tmp_path, capsys):
  with flagsaver.flagsaver(
    workdir=str(tmp_path),
    plan_bench_models=["7b"],
    plan_bench_contexts=["192"],
    plan_bench_lengths=["github_like"],
    plan_bench_batches=2,
    plan_bench_batch_size=64,
    plan_bench_nodes=8,
  ):
    plan_bench.main(["plan_bench"])
  assert "7B 192K github_like: shapes" in capsys.readouterr().out
  text = (tmp_path / "summary.md").read_text()
  for words in ("## Verdicts", "## Speed-up over static", "1.45", "plan.png"):
    assert words in text
  (point,) = json.loads((tmp_path / "results.json").read_text())
  assert point["published"] == [1.45, 1.07] and len(point["batches"]) == 2
  for batch in point["batches"]:
    assert batch["shapes"]["seconds"] <= batch["static"]["seconds"]
    assert batch["shapes"]["seconds"] >= batch["shapes"]["split"] * (1 - 1e-6)
  for name in ("plan.png", "speedup.png"):
    assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_source_is_told_before_any_work():
  with flagsaver.flagsaver(plan_bench_lengths=["github"]):
    with pytest.raises(UserError, match="did you mean 'github_like'"):
      plan_bench.main(["plan_bench"])


def test_the_picture_shows_every_task_in_its_place():
  """Boxes read back from the axes: device rows, start and length."""
  from matplotlib.figure import Figure

  tasks = (Task(0, 0, 2, (0,)), Task(1, 0, 1, (1,)), Task(1, 1, 1, (2,)))
  made = Plan(
    lengths=np.array([9, 1, 1]),
    num_devices=2,
    tasks=tasks,
    barrier=False,
    seconds=5.0,
    task_seconds=np.array([3.0, 2.0, 1.0]),
    device_seconds=np.array([5.0, 4.0]),
    device_memory=np.zeros(2),
    lower_bound=4.0,
    split_bound=4.0,
    planner="tree",
    solve_seconds=0.0,
  )
  axes = Figure().subplots()
  _planner_pictures._gantt(axes, made, {1: "red", 2: "blue"})
  (boxes,) = axes.collections
  extents = [path.get_extents().bounds for path in boxes.get_paths()]
  assert extents == [(0, 0, 3, 2), (3, 0, 2, 1), (3, 1, 1, 1)]
  assert boxes.get_facecolors()[0].tolist() == [0, 0, 1, 1]
