"""The binary as a user runs it: small runs, mistakes, a kill and a resume."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fedjax_het.training.arms import Arm
from fedjax_het_experiments import hide_n_seek

SMALL = [
  "--num_clients=12",
  "--cohort_size=4",
  "--rounds=6",
  "--eval_every=2",
  "--seeds=2",
]


def _command(*flags):
  return [sys.executable, "-m", "fedjax_het_experiments", "demo", *flags]


def _run(env, *flags):
  return subprocess.run(
    _command(*flags), env=env, capture_output=True, text=True, timeout=900
  )


MISTAKES = {
  "--dataset=fashion_minst": "did you mean 'fashion_mnist'",
  "--hide_n_seek_densty=0.2": "did you mean --hide_n_seek_density",
  "--hide_n_seek_density=0.001": "removes layer",
  "--partition=dirichlet:0.01,min_size=10": "alpha",
  "--model=mpl": "did you mean 'mlp'",
  "--rounds=7": "multiple of --eval_every",
  "--cohort_size=31": "cohort of 31 from 30 clients",
}


def test_mistakes_end_in_one_line_and_code_2(source_env, tmp_path):
  running = {}
  for flag in MISTAKES:
    workdir = tmp_path / str(len(running))
    running[flag] = (
      workdir,
      subprocess.Popen(
        _command(flag, f"--workdir={workdir}"),
        env=source_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      ),
    )
  ended = {
    flag: (workdir, process.communicate(timeout=600)[1], process.returncode)
    for flag, (workdir, process) in running.items()
  }
  for flag, (workdir, stderr, code) in ended.items():
    assert code == 2, (flag, stderr)
    lines = stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    assert MISTAKES[flag] in lines[0]
    left = [path for path in workdir.rglob("*") if path.is_file()]
    assert not left, (flag, left)


@pytest.mark.slow
def test_demo_ends_with_a_summary(source_env, tmp_path):
  done = _run(source_env, *SMALL, f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  summary = tmp_path / "run" / "summary.md"
  assert str(summary) in done.stdout
  text = summary.read_text()
  assert "| PASS |" in text or "| FAIL |" in text
  for plot in ("overview", "accuracy_rounds", "accuracy_bytes"):
    assert (tmp_path / "run" / f"{plot}.png").stat().st_size > 10_000
  again = _run(source_env, *SMALL, f"--workdir={tmp_path / 'run'}")
  assert again.returncode == 2 and "--resume" in again.stderr
  other = [f for f in SMALL if "cohort" not in f] + ["--cohort_size=5"]
  changed = _run(
    source_env, *other, "--resume", f"--workdir={tmp_path / 'run'}"
  )
  assert changed.returncode == 2 and "cohort_size" in changed.stderr


@pytest.mark.slow
def test_kill_and_resume_ends_with_the_same_bits(source_env, tmp_path):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  assert _run(source_env, *SMALL, f"--workdir={whole}").returncode == 0
  resumes = 0
  for after in (1, 3):  # blocks seen before the kill, in whichever arm
    process = subprocess.Popen(
      _command(*SMALL, f"--workdir={cut}", *["--resume"] * (resumes > 0)),
      env=source_env,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    start = _blocks(cut)
    while _blocks(cut) < start + after and process.poll() is None:
      time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumes += 1
  final = _run(source_env, *SMALL, "--resume", f"--workdir={cut}")
  assert final.returncode == 0, final.stderr
  files = sorted(p.relative_to(whole) for p in whole.rglob("metrics.jsonl"))
  assert len(files) == 5
  for name in files:
    assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def _blocks(folder):
  return sum(
    "eval/accuracy" in json.loads(line)
    for path in folder.glob("*/*/metrics.jsonl")  # checkpoints move about
    for line in path.read_text().splitlines()
    if line.endswith("}")
  )


def _arm(name, final, up):
  accuracy = np.stack([np.array([0.4, 0.7, f]) for f in final])
  ones = np.ones((len(final), 1))
  sent = ones * np.array([[10, 20, 30]]) * up
  return Arm(name, np.array([10, 20, 30]), accuracy, sent, sent)


def test_verdicts_follow_the_curves():
  rng = np.random.default_rng(0)
  noise = rng.normal(scale=0.001, size=(5, 5))
  kept_bytes = 250  # 2,000 of 10,000 weights
  arms = {
    name: _arm(name, level + noise[i], up)
    for i, (name, level, up) in enumerate(
      [
        (hide_n_seek.DENSE, 0.90, 40_000),
        (hide_n_seek.MASKED, 0.89, 8_000),
        (hide_n_seek.SIGN, 0.87, kept_bytes),
        (hide_n_seek.BINARY, 0.87, kept_bytes),
        (hide_n_seek.FEDPM, 0.80, 1_250),
      ]
    )
  }
  got = hide_n_seek.verdicts(
    arms, density=0.2, weights=10_000, cohort_size=1, target=0.7
  )
  assert [v.outcome for v in got] == [
    "PASS",  # the uplink is what was claimed
    "NULL",  # equal arms: the declared null
    "PASS",  # 2 points below the mask
    "PASS",  # 3 points below dense
    "PASS",  # 250 against 40,000 bytes at the same round
    "FAIL",  # the same number of rounds
  ]
  far = hide_n_seek.verdicts(
    arms, density=0.2, weights=10_000, cohort_size=1, target=0.99
  )
  assert far[-1].outcome == "FAIL" and "never" in far[-1].measured
  wrong = hide_n_seek.verdicts(
    arms, density=0.3, weights=10_000, cohort_size=1, target=0.7
  )
  assert wrong[0].outcome == "FAIL"
