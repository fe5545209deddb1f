"""Verdicts and tables of `cellm`, its tasks, and the binary on the digits."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import sources
from fedjax_het.training.arms import Arm
from fedjax_het_experiments import _cellm_arms as names
from fedjax_het_experiments import _cellm_report as report
from fedjax_het_experiments import _cellm_tasks as tasks
from fedjax_het_experiments import _comparison

LEVELS = {
  names.DENSE: (0.80, 100),
  names.FOURTH: (0.80, 28),
  names.GLOBAL: (0.80, 28),
  names.SIXTEENTH: (0.785, 9),
  names.UPLINK: (0.78, 16),
  names.RANK4: (0.80, 26),
  names.RANK1: (0.78, 8),
  names.EARLY: (0.76, 25),
  names.WARM: (0.79, 30),
  names.SELECT: (0.79, 26),
}


def _arms(**changes):
  """Five seeds whose levels differ by far more than the arms do."""
  rng = np.random.default_rng(0)
  of_seed = rng.normal(scale=0.05, size=5)
  arms = {}
  for name, (level, cost) in (LEVELS | changes).items():
    curve = level + of_seed[:, None] + rng.normal(scale=1e-3, size=(5, 4))
    curve[:, 0] = 0.1  # the first evaluation is not among the last three
    sent = cost * np.arange(1, 5)[None] * np.ones((5, 1)) * 1e4
    arms[name] = Arm(name, np.arange(1, 5), curve, sent, sent)
  return arms


def test_every_arm_has_a_folder_of_its_own(tmp_path):
  setting = types.SimpleNamespace(workdir=tmp_path)
  folders = {_comparison.folder(setting, "tune", name) for name in LEVELS}
  assert len(folders) == len(LEVELS)
  assert {folder.parent for folder in folders} == {tmp_path / "tune"}


def test_verdicts():
  def outcomes(**changes):
    return [row.outcome for row in report.verdicts(_arms(**changes))]

  # as in the pilot: a tenth of the bytes costs more than a point
  assert outcomes() == ["PASS", "PASS", "FAIL", "NULL", "FAIL"]
  worse = outcomes(**{names.FOURTH: (0.77, 28)})
  assert worse == ["FAIL", "FAIL", "FAIL", "FAIL", "FAIL"]
  better = outcomes(**{names.FOURTH: (0.82, 28)})
  assert better == ["PASS", "PASS", "PASS", "PASS", "FAIL"]
  equal = outcomes(**{names.SIXTEENTH: (0.80, 9)})
  assert equal[-1] == "PASS"
  dear = outcomes(**{names.SIXTEENTH: (0.80, 12)})
  assert dear[-1] == "FAIL"


def test_factors_of_traffic_are_those_at_the_target():
  arms = _arms()
  for name in arms:  # no noise: everybody is there at the second evaluation
    curve = np.array([[0.1, 0.7, 0.7, 0.7]] * 5)
    arms[name] = arms[name]._replace(accuracy=curve)
  late = np.array([[0.1, 0.1, 0.1, 0.7]] * 4 + [[0.1] * 4])
  arms[names.SIXTEENTH] = arms[names.SIXTEENTH]._replace(accuracy=late)
  text = report.headline_table(arms, 0.65)
  rows = {
    tuple(cell.strip() for cell in line.split("|")[1:4:2]): line
    for line in text.splitlines()
  }
  assert "5 of 5 | 3.6 times" in rows["than dense LoRA", names.FOURTH]
  # twice the rounds at 9 % of the bytes, in four seeds
  assert "4 of 5 | 5.6 times" in rows["than dense LoRA", names.SIXTEENTH]


def test_the_base_knows_half_of_the_classes():
  dataset = sources.load("digits", None)
  task = tasks.images(dataset, public=300, held=600, judged=100)
  assert set(np.asarray(task.public.y)) == set(range(5))
  assert set(task.dataset.train_y) == set(range(10))
  assert len(task.dataset.train_y) == 600 and len(task.dataset.test_y) == 100
  held = {image.tobytes() for image in task.dataset.train_x}
  seen = [image.tobytes() in held for image in np.asarray(task.public.x)]
  assert np.mean(seen) < 0.05  # the digits hold a few twins
  params = tasks.trained_base(task, rate=3e-3, batch_size=50, epochs=3)
  hit = jnp.argmax(task.network.apply(params, task.dataset.test_x), -1)
  hit, y = np.asarray(hit) == task.dataset.test_y, task.dataset.test_y
  assert hit[y < 5].mean() > 0.5 and hit[y >= 5].mean() < 0.1
  with pytest.raises(UserError, match="cellm_public"):
    tasks.images(dataset, public=10_000, held=600, judged=100)


def _write_plays(folder, count=4, roles=3, letters=2600):
  rng = np.random.default_rng(0)
  alphabet = np.array(list("abcdefgh "))
  for play in range(count):
    text = f"# play {play}\n"
    for role in range(roles):
      speech = "".join(alphabet[rng.integers(0, 9, letters)])
      text += f"\n**ROLE {role}**\n{speech}\n"
    (folder / f"play_{play}.md").write_text(text)


def test_clients_are_roles_of_plays_that_the_base_has_not_read(tmp_path):
  _write_plays(tmp_path)
  task = tasks.plays(str(tmp_path), num_clients=3, steps=2, held=50, judged=20)
  assert task.public.x.shape == (50, 32)
  public = {row.tobytes() for row in np.asarray(task.public.x)}
  for seed in (0, 1):
    data = task.natural(seed)
    assert data.train.count.shape == (3,)
    np.testing.assert_array_equal(data.budget, 2)
    assert int(data.test.count.max()) <= 20
    for part in (data.train, data.test):
      for row, count in zip(part.index, part.count, strict=True):
        x = np.asarray(data.examples.x[row[: int(count)]])
        assert not public & {window.tobytes() for window in x}
  assert data.heldout.y.shape == (20,)
  logits = task.judged.apply(
    task.network.init(jax.random.key(0)), data.heldout.x
  )
  assert logits.shape == (20, task.dataset.num_classes)
  with pytest.raises(UserError, match="num_clients"):
    tasks.plays(str(tmp_path), num_clients=9, steps=2, held=50, judged=20)


@pytest.mark.slow
def test_the_binary(source_env, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "fedjax_het_experiments",
      "cellm",
      "--dataset=digits",
      "--num_clients=12",
      "--cohort_size=3",
      "--rounds=6",
      "--eval_every=2",
      "--seeds=2",
      "--tune_seeds=0",
      "--cellm_public=200",
      "--cellm_held=600",
      "--cellm_judged=200",
      f"--workdir={tmp_path}",
    ],
    env=source_env,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stderr
  text = (tmp_path / "summary.md").read_text()
  assert text.count("| FLASC 1/4, global |") >= 3  # arms, price, target
  assert "| layer_0/q/a |" in text
  assert (tmp_path / "mask_density.png").stat().st_size > 5000
