"""The binary: its texts, its cost, its verdicts, and a small run."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.models.transformer import Shape, transformer
from fedjax_het.seqpar.prefetch import Ready
from fedjax_het.seqpar.types import Plan, Task
from fedjax_het_experiments import _plan_report, _texts
from fedjax_het_experiments._plan_arms import (
  Arm,
  Measured,
  check_arm,
  model_cost,
)


@pytest.fixture
def folder(tmp_path):
  """Files of text, one of them binary, in a folder and below."""
  (tmp_path / "b.txt").write_bytes(b"\n\none\n\nstill one\n\n\ntwo\n\n\n\nx\n")
  (tmp_path / "below").mkdir()
  (tmp_path / "below/a.txt").write_text("längst," * 10)
  (tmp_path / "a.bin").write_bytes(b"\xff\xfe text \n\n\n more")
  return tmp_path


def test_texts(folder):
  found = [bytes(text) for text in _texts.documents(str(folder), 20)]
  assert found == [b"one\n\nstill one", b"two"]
  found = _texts.documents(str(folder), 80)
  assert len(found[2]) == 80 and found[2].dtype == np.uint8
  library = _texts.documents(None, 4096)
  lengths = np.array([len(text) for text in library])
  assert len(library) > 1000 and lengths.max() > 5 * np.median(lengths)


def test_batches():
  texts = [np.full(2, i, np.uint8) for i in range(20)]
  drawn = _texts.batches(texts, 3, 5, seed=0)
  firsts = [int(text[0]) for batch in drawn for text in batch]
  assert len(set(firsts)) == 15 and [len(batch) for batch in drawn] == [3] * 5
  again = _texts.batches(texts, 3, 5, seed=0)
  assert firsts == [int(text[0]) for batch in again for text in batch]
  assert drawn[0][0].dtype == np.int32


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda path: _texts.documents(str(path / "no"), 9), "no folder"),
    (lambda path: _texts.documents(str(path), 2), "no text of 2 to 2 bytes"),
    (lambda path: _texts.batches([], 3, 2, 0), "0 documents are too few"),
    (lambda path: check_arm("shape/single"), "did you mean 'shapes'"),
    (lambda path: check_arm("shapes/group"), "did you mean 'groups'"),
    (lambda path: check_arm("shapes"), "form of arm 'shapes'"),
  ],
)
def test_mistakes(call, message, folder):
  with pytest.raises(UserError, match=message):
    call(folder)


def test_the_cost_counts_the_matrices():
  """Six flops a weight and token: every matrix, the embedding as head."""
  shape = Shape(layers=3, heads=8, kv_heads=4, head_width=6, hidden=50)
  like = jax.eval_shape(transformer(shape).init, jax.random.key(0))
  weights = sum(leaf.size for leaf in jax.tree.leaves(like) if leaf.ndim == 2)
  cost = model_cost(shape)
  np.testing.assert_allclose(cost.linear * 1e10, 6 * weights)
  # 7 products of two flops for half of s^2 pairs, 8 heads of 6, 3 layers
  np.testing.assert_allclose(cost.quadratic * 1e10, 7 * 2 / 2 * 8 * 6 * 3)


def made_up(name, losses, *, compilations=0, waited=0.0):
  none = np.zeros(0)
  lengths = np.array([30, 10])
  tasks = Task(0, 0, 2, (0,)), Task(1, 0, 1, (1,))
  plan = Plan(
    lengths, 2, tasks, False, 1.0, none, none, none, 0.5, 0.5, "tree", 0.1
  )
  steps = [
    Measured(loss, 2.0, 3.0, 0, 0.0, 80, plan, 0.5, Ready(None, 1.0, waited))
    for loss in losses
  ]
  steps[-1] = steps[-1]._replace(compilations=compilations)
  return Arm(name, steps)


def test_verdicts_and_table():
  losses = [3.0, 2.0, 1.5, 1.0]
  close = [loss * 1.00001 for loss in losses]
  arms = [made_up("tree/single", losses), made_up("static/groups", close)]
  outcomes = [v.outcome for v in _plan_report.verdicts(arms)]
  assert outcomes == ["PASS", "PASS", "PASS"]
  far = [3.0, 2.0, 1.5, 1.001]
  arms = [
    made_up("tree/single", losses, compilations=1),
    made_up("static/groups", far, waited=0.2),
  ]
  outcomes = [v.outcome for v in _plan_report.verdicts(arms)]
  assert outcomes == ["FAIL", "FAIL", "FAIL"]
  # compilations are expected of a program for each group
  grown = made_up("static/groups", losses, compilations=2)
  assert [v.outcome for v in _plan_report.verdicts([grown])] == ["PASS"] * 2
  assert arms[0].degrees == {1: 0.25, 2: 0.75}
  assert arms[0].tokens_per_second == 20
  headings, cells = _plan_report.rows(arms)
  row = dict(zip(headings, cells[1], strict=True))
  assert row["computed"] == "2.00" and row["hidden"] == "80.0 %"
  assert row["plan ms (CPU)"] == "1000 (500)" and row["step s"] == "2.00"


def command(*flags):
  module = "fedjax_het_experiments"
  return [sys.executable, "-m", module, "long_context_step", *flags]


def test_a_mistake_is_one_line(source_env, tmp_path):
  done = subprocess.run(
    command("--long_context_step_arms=trees/single", f"--workdir={tmp_path}"),
    env=source_env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and done.stdout == ""
  assert "error: unknown planner 'trees': did you mean 'tree'?" in done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_small_run(source_env, tmp_path):
  flags = (
    f"--workdir={tmp_path / 'run'}",
    "--devices=2",
    "--long_context_step_arms=static/single,tree/groups",
    "--long_context_step_tokens=64",
    "--long_context_step_batch=4",
    "--long_context_step_batches=3",
  )

  def run(*more):
    return subprocess.run(
      command(*flags, *more), env=source_env, capture_output=True, text=True
    )

  done = run()
  assert done.returncode == 0, done.stderr
  folder = tmp_path / "run"
  config = json.loads((folder / "config.json").read_text())
  assert config["devices"] == 2 and config["long_context_step_tokens"] == 64
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len(records) == 2 * 6
  losses = {}
  for record in records:
    losses.setdefault(record["step"], []).append(record["loss"])
    assert record["computed_tokens"] >= record["tokens"]
  for step, (one, other) in losses.items():
    np.testing.assert_allclose(one, other, rtol=1e-5, err_msg=str(step))
  assert losses[6][0] < losses[1][0]
  summary = (folder / "summary.md").read_text()
  assert str(folder / "summary.md") in done.stdout
  assert "| every plan trains the same model |" in summary
  assert (folder / "losses_times_degrees.png").stat().st_size > 10_000
  again = run()
  assert again.returncode == 2 and "--overwrite" in again.stderr
