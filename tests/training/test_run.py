"""The host loop: results, refusals, kills and signals at any moment."""

import contextlib
import errno
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.training import metrics, run

SCRIPT = pathlib.Path(__file__).with_name("toy_run.py")
TOY = runpy.run_path(str(SCRIPT))
TOTAL = TOY["ROUNDS"] * TOY["BLOCKS"]


@pytest.fixture(scope="module")
def toy(source_env, tmp_path_factory):
  """Starts toy runs; compiled code is shared between them."""
  cache = str(tmp_path_factory.mktemp("cache"))
  env = {
    **source_env,
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  with contextlib.ExitStack() as stack:

    def start(workdir, *flags, **variables):
      process = subprocess.Popen(
        [sys.executable, "-W", "error", str(SCRIPT), str(workdir), *flags],
        env=env | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      stack.callback(process.kill)
      return process

    yield start


def finish(process, code):
  out, error = process.communicate(timeout=120)
  assert process.returncode == code, error
  return out, error


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
  """An uninterrupted run in its own process: state and metrics, as bytes."""
  workdir = tmp_path_factory.mktemp("whole") / "run"
  state, _ = finish(toy(workdir), 0)
  return state, (workdir / run.METRICS).read_bytes()


def lines(workdir):
  path = workdir / run.METRICS
  return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_until(process, condition):
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.01)


def wait_for_line(process, workdir, count):
  wait_until(process, lambda: lines(workdir) >= count)


def test_a_run_is_the_python_loop(tmp_path):
  result = TOY["train"](tmp_path / "run")
  state, data = TOY["make_state"](), jnp.arange(5.0)
  step = jax.jit(jax.vmap(TOY["block"], in_axes=(0, None)))
  losses, accuracies = [], []
  for _ in range(TOY["BLOCKS"]):
    state, history = step(state, data)
    losses += np.asarray(history["rounds"]["loss"]).T.tolist()
    accuracies.append(np.asarray(history["eval"]["accuracy"]))
  assert TOY["state_bytes"](result.state) == TOY["state_bytes"](state)
  rounds = [r for r in result.records if "loss" in r]
  evaluations = [r for r in result.records if "eval/accuracy" in r]
  assert [r["round"] for r in rounds] == list(range(1, TOTAL + 1))
  np.testing.assert_array_equal(
    np.float32([r["loss"] for r in rounds]), np.float32(losses)
  )
  assert [r["round"] for r in evaluations] == list(range(3, TOTAL + 1, 3))
  np.testing.assert_array_equal(
    np.float32([r["eval/accuracy"] for r in evaluations]), accuracies
  )
  assert result.records == metrics.read_jsonl(tmp_path / "run" / run.METRICS)
  kept = {int(p.name) for p in (tmp_path / "run" / run.CHECKPOINTS).iterdir()}
  best = int(np.argmax(np.mean(accuracies, axis=1)) + 1) * TOY["ROUNDS"]
  assert kept == {TOTAL, best} and best != TOTAL


def test_one_seed_tensorboard_and_a_longer_run(tmp_path):
  def go(num_blocks, **options):
    state = jax.tree.map(lambda leaf: leaf[0], TOY["make_state"]())
    return run.train(
      TOY["block"],
      state,
      jnp.arange(5.0),
      rounds_per_block=TOY["ROUNDS"],
      num_blocks=num_blocks,
      workdir=tmp_path / "run",
      config={"lr": 0.1},  # without the number of rounds: it may grow
      summarise=dict,
      progress="quiet",
      **options,
    )

  short = go(2, tensorboard=True)
  assert isinstance(short.records[0]["loss"], float)
  assert any((tmp_path / "run" / run.TENSORBOARD).iterdir())
  longer = go(3, resume=True)
  assert longer.records[: len(short.records)] == short.records
  assert longer.records[-1]["round"] == 9
  again = go(3, overwrite=True)
  assert again.records == longer.records
  assert TOY["state_bytes"](again.state) == TOY["state_bytes"](longer.state)
  assert not (tmp_path / "run" / run.TENSORBOARD).exists()
  with pytest.raises(UserError, match="round 9.*up to round 6"):
    go(2, resume=True)


def test_resume_beside_data_on_several_devices(tmp_path):
  """What orbax restores is bound to one device; a fresh state is not."""
  devices = jax.make_mesh((2,), ("clients",), devices=jax.devices()[:2])
  data = jax.device_put(jnp.arange(5.0), jax.NamedSharding(devices, jax.P()))

  def go(folder, num_blocks, **options):
    return run.train(
      jax.vmap(TOY["block"], in_axes=(0, None)),
      TOY["make_state"](),
      data,
      rounds_per_block=TOY["ROUNDS"],
      num_blocks=num_blocks,
      workdir=tmp_path / folder,
      config={},
      num_seeds=TOY["SEEDS"],
      summarise=dict,
      progress="quiet",
      **options,
    )

  go("cut", 2)
  cut, whole = go("cut", 4, resume=True), go("whole", 4)
  assert TOY["state_bytes"](cut.state) == TOY["state_bytes"](whole.state)


def test_data_that_change_from_block_to_block(tmp_path):
  traces, asked = [], []

  def block(state, data):
    traces.append(1)
    return TOY["block"](state, data)

  def slot(number):
    asked.append(number)
    if number == fails_at:
      raise OSError("killed")
    return jnp.arange(5.0) * (1 + number // 2)  # two blocks a slot

  def go(workdir, data, resume=False):
    state = jax.tree.map(lambda leaf: leaf[0], TOY["make_state"]())
    result = run.train(
      block,
      state,
      data,
      rounds_per_block=TOY["ROUNDS"],
      num_blocks=TOY["BLOCKS"],
      workdir=workdir,
      config={},
      resume=resume,
      summarise=dict,
      progress="quiet",
    )
    return TOY["state_bytes"](result.state)

  fails_at = None
  whole = go(tmp_path / "whole", slot)
  assert asked == list(range(TOY["BLOCKS"])) and len(traces) == 1

  state = jax.tree.map(lambda leaf: leaf[0], TOY["make_state"]())
  step = jax.jit(TOY["block"])
  for number in range(TOY["BLOCKS"]):
    state, _ = step(state, jnp.arange(5.0) * (1 + number // 2))
  assert whole == TOY["state_bytes"](state)
  assert whole != go(tmp_path / "constant", jnp.arange(5.0))

  fails_at = 3  # in the middle of a slot
  with pytest.raises(OSError, match="killed"):
    go(tmp_path / "cut", slot)
  fails_at = None
  asked.clear()
  assert go(tmp_path / "cut", slot, resume=True) == whole
  assert asked == list(range(3, TOY["BLOCKS"]))
  assert (tmp_path / "cut" / run.METRICS).read_bytes() == (
    tmp_path / "whole" / run.METRICS
  ).read_bytes()


def test_checkpoints_that_are_far_apart_lose_only_time(tmp_path):
  dies, traced = True, []

  def slot(number):
    if dies and number == 4:
      raise OSError("killed")
    traced.append(number)
    return jnp.arange(5.0)

  def go(folder, **options):
    state = jax.tree.map(lambda leaf: leaf[0], TOY["make_state"]())
    return run.train(
      TOY["block"],
      state,
      slot,
      rounds_per_block=TOY["ROUNDS"],
      num_blocks=TOY["BLOCKS"],
      workdir=tmp_path / folder,
      config={},
      summarise=dict,
      progress="quiet",
      **options,
    )

  with pytest.raises(OSError, match="killed"):
    go("cut", save_seconds=1e9)
  dies = False
  traced.clear()
  rest = go("cut", save_seconds=1e9, resume=True)
  assert traced == [1, 2, 3, 4, 5]  # only the first block had been saved
  whole = go("whole")
  assert TOY["state_bytes"](rest.state) == TOY["state_bytes"](whole.state)
  assert rest.records == whole.records


def test_a_finished_run_returns_what_is_stored(tmp_path):
  first = TOY["train"](tmp_path)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("checkpoints/*")}
  again = TOY["train"](tmp_path, resume=True)
  assert TOY["state_bytes"](again.state) == TOY["state_bytes"](first.state)
  assert again.records == first.records
  after = {p: p.stat().st_mtime_ns for p in tmp_path.glob("checkpoints/*")}
  assert before == after


def test_results_are_never_mixed(tmp_path):
  TOY["train"](tmp_path)
  with pytest.raises(UserError, match="--resume .*--overwrite .*--workdir"):
    TOY["train"](tmp_path)
  with pytest.raises(UserError, match="exclude each other"):
    TOY["train"](tmp_path, resume=True, overwrite=True)
  with pytest.raises(UserError, match="lr: 0.2 given, 0.1 stored"):
    TOY["train"](tmp_path, resume=True, config=TOY["CONFIG"] | {"lr": 0.2})
  with pytest.raises(UserError, match="blocks of 4 up to round 24"):
    TOY["train"](tmp_path, resume=True, rounds_per_block=4)
  (tmp_path / run.METRICS).unlink()
  with pytest.raises(UserError, match="does not reach round 18"):
    TOY["train"](tmp_path, resume=True)
  assert TOY["train"](tmp_path, overwrite=True).records


def test_an_unknown_best_metric_is_named(tmp_path):
  with pytest.raises(UserError, match="did you mean 'eval/accuracy'"):
    TOY["train"](tmp_path, best_metric="eval/acuracy")


def test_several_processes_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(UserError, match="one of 2"):
    TOY["train"](tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_workdir_in_use_is_refused(tmp_path, toy, whole):
  process = toy(tmp_path / "run", SLEEP="0.2")
  wait_for_line(process, tmp_path / "run", 1)
  with pytest.raises(UserError, match="another process"):
    TOY["train"](tmp_path / "run", resume=True)
  process.kill()
  process.communicate()
  assert TOY["train"](tmp_path / "run", resume=True).records


def test_a_full_disk_stops_a_run_that_can_be_resumed(tmp_path, monkeypatch):
  real, calls = metrics.os.fsync, []

  def full(number):
    calls.append(number)
    if len(calls) == 4:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(number)

  whole = TOY["train"](tmp_path / "whole")
  monkeypatch.setattr(metrics.os, "fsync", full)
  with pytest.raises(UserError, match="no space left"):
    TOY["train"](tmp_path / "run")
  stopped = metrics.read_jsonl(tmp_path / "run" / run.METRICS)[-1]["round"]
  assert 0 < stopped < TOTAL
  resumed = TOY["train"](tmp_path / "run", resume=True)
  assert TOY["state_bytes"](resumed.state) == TOY["state_bytes"](whole.state)
  assert resumed.records == whole.records


def test_kills_at_every_step_of_a_block_change_nothing(tmp_path, toy, whole):
  """One run killed in each of its blocks, at another place each time."""
  workdir = tmp_path / "run"
  deaths = ["metrics,3", "save,3", "rename,6", "torn,9", "delete,12", "save,18"]
  for death in deaths:
    finish(toy(workdir, "--resume", DIE=death), -signal.SIGKILL)
  state, _ = finish(toy(workdir, "--resume"), 0)
  assert state == whole[0]
  assert (workdir / run.METRICS).read_bytes() == whole[1]


def test_kills_at_random_moments_change_nothing(tmp_path, toy, whole):
  """SIGKILL in the middle of a scan, mostly, or wherever the clock falls."""
  workdir = tmp_path / "run"
  rng = random.Random(os.environ.get("FEDJAX_HET_KILL_SEED", 0))
  for _ in range(2):
    before = lines(workdir)
    process = toy(workdir, "--resume", SLEEP="0.05")
    wait_for_line(process, workdir, before + 1)  # a block takes 0.3 s and more
    time.sleep(rng.uniform(0, 0.4))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  state, _ = finish(toy(workdir, "--resume", SLEEP="0.05"), 0)
  assert state == whole[0]
  assert (workdir / run.METRICS).read_bytes() == whole[1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_block_finish(tmp_path, toy, whole, signum):
  workdir = tmp_path / "run"
  process = toy(workdir, SLEEP="0.2")
  wait_for_line(process, workdir, 1)
  process.send_signal(signum)
  _, error = finish(process, 128 + signum)
  assert f"{signum.name}: finishing this block" in error
  done = int(error.split("saved after round ")[1].split()[0])
  assert 0 < done < TOTAL and done % TOY["ROUNDS"] == 0
  assert "--resume" in error and str(workdir) in error
  assert "Traceback" not in error
  assert metrics.read_jsonl(workdir / run.METRICS)[-1]["round"] == done
  # In this process, on other devices: the bits are those of the computation.
  resumed = TOY["train"](workdir, resume=True)
  assert TOY["state_bytes"](resumed.state).hex() == whole[0].strip()
  assert (workdir / run.METRICS).read_bytes() == whole[1]


def test_a_second_signal_ends_it_in_the_middle_of_a_block(tmp_path, toy):
  process = toy(tmp_path / "run", SLEEP="10")  # a block would take a minute
  wait_until(process, (tmp_path / "run.asleep").exists)
  start = time.monotonic()
  process.send_signal(signal.SIGINT)
  assert "finishing this block" in process.stderr.readline()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert time.monotonic() - start < 8
  assert lines(tmp_path / "run") == 0


def test_handlers_are_put_back(tmp_path):
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  TOY["train"](tmp_path)
  assert before == (
    signal.getsignal(signal.SIGINT),
    signal.getsignal(signal.SIGTERM),
  )
  assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
  "records, warning",
  [
    ([{"round": 1, "dropped": 0}, {"round": 1, "eval/a": 1.0}], None),
    ([{"round": 1, "loss": 0.5}], None),
    (
      [
        {"round": 12, "dropped": 1, "dropped_clients": [17]},
        {"round": 12, "eval/a": 1.0},
      ],
      "round 12: dropped 1 upload of client 17 (NaN or Inf)",
    ),
    (
      [
        {"round": 4, "dropped": [0, 2], "dropped_clients": [[], [9, 3]]},
        {"round": 5, "dropped": [0, 0], "dropped_clients": [[], []]},
        {"round": 6, "dropped": [1, 0], "dropped_clients": [[3], []]},
      ],
      "rounds 4-6: dropped 3 uploads of clients 3, 9 (NaN or Inf)",
    ),
    (
      [{"round": 2, "dropped": 9, "dropped_clients": list(range(9))}],
      "round 2: dropped 9 uploads of clients 0, 1, 2, 3, 4, 5, 6, 7, ... "
      "(NaN or Inf)",
    ),
    ([{"round": 8, "dropped": 2}], "round 8: dropped 2 uploads (NaN or Inf)"),
  ],
)
def test_dropped_uploads_are_one_line(records, warning):
  assert run.dropped_warning(records) == warning


def test_the_warning_is_printed_even_if_quiet(tmp_path, capfd):
  TOY["train"](tmp_path)
  assert "train: round 8: dropped 2 uploads" in capfd.readouterr().err
