"""Metrics: what a block's history becomes, and files that survive kills."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from fedjax_het.core.cohort import Cohort
from fedjax_het.core.errors import UserError
from fedjax_het.training import metrics

RNG = np.random.default_rng(1)


def make_cohort(shape):
  present = RNG.uniform(size=shape) > 0.2
  ok = present & (RNG.uniform(size=shape) > 0.2)
  return Cohort(
    ids=RNG.integers(0, 100, shape, np.int32),
    ok=ok,
    present=present,
    weight=(RNG.integers(1, 50, shape) * ok).astype(np.float32),
    steps=RNG.integers(0, 9, shape, np.int32),
    up_bytes=RNG.integers(2**30, 2**32, shape, np.uint32),
    down_bytes=np.full(shape, 2**32 - 1, np.uint32),
    seconds=RNG.uniform(size=shape).astype(np.float32),
    joules=RNG.uniform(size=shape).astype(np.float32),
    metrics={"loss": (RNG.uniform(size=shape) * ok).astype(np.float32)},
  )


def test_cohort_summary_is_the_loop():
  cohort = make_cohort((2, 3, 6))
  cohort.weight[0, 0] = 0
  cohort.ok[0, 0] = False
  got = metrics.summarise_cohort(cohort)
  for s, r in np.ndindex(2, 3):
    weight = loss = up = down = steps = joules = absent = 0
    dropped = []
    for c in range(6):
      weight += float(cohort.weight[s, r, c])
      part = float(cohort.weight[s, r, c]) * float(
        cohort.metrics["loss"][s, r, c]
      )
      loss += part
      up += int(cohort.up_bytes[s, r, c])  # beyond 32 bits
      down += int(cohort.down_bytes[s, r, c])
      steps += int(cohort.steps[s, r, c])
      joules += float(cohort.joules[s, r, c])
      absent += not cohort.present[s, r, c]
      if cohort.present[s, r, c] and not cohort.ok[s, r, c]:
        dropped.append(int(cohort.ids[s, r, c]))
    expected = loss / weight if weight else math.nan
    np.testing.assert_allclose(got["loss"][s, r], expected, rtol=1e-6)
    assert got["up_bytes"][s, r] == up
    assert got["down_bytes"][s, r] == down
    assert got["steps"][s, r] == steps
    assert got["absent"][s, r] == absent
    np.testing.assert_allclose(got["joules"][s, r], joules, rtol=1e-6)
    assert got["dropped"][s, r] == len(dropped)
    assert got["dropped_clients"][s, r] == dropped


def test_records_of_one_seed():
  rounds = {"loss": np.float32([0.1, 0.2, np.nan]), "n": np.int32([1, 2, 3])}
  evaluation = {"accuracy": np.float32(0.7), "client": {"a": np.arange(2)}}
  got = metrics.block_records(rounds, evaluation, first_round=4, num_rounds=3)
  assert got == [
    {"round": 4, "loss": 0.1, "n": 1},
    {"round": 5, "loss": 0.2, "n": 2},
    {"round": 6, "loss": pytest.approx(math.nan, nan_ok=True), "n": 3},
    {"round": 6, "eval/accuracy": 0.7, "eval/client/a": [0, 1]},
  ]


def test_records_of_several_seeds_without_evaluation():
  rounds = metrics.summarise_cohort(make_cohort((5, 2, 4)))
  got = metrics.block_records(
    rounds, {}, first_round=1, num_rounds=2, num_seeds=5
  )
  assert [r["round"] for r in got] == [1, 2]
  for r, record in enumerate(got):
    assert record["up_bytes"] == [int(v) for v in rounds["up_bytes"][:, r]]
    assert record["dropped_clients"] == [
      rounds["dropped_clients"][s, r] for s in range(5)
    ]
  json.dumps(got, allow_nan=False)


def test_an_array_without_rounds_is_refused():
  with pytest.raises(ValueError, match=r"'loss' is \(4,\).*\(3,\)"):
    metrics.block_records(
      {"loss": np.zeros(4)}, {}, first_round=1, num_rounds=3
    )


def test_floats_come_back_bit_for_bit(tmp_path):
  values = RNG.standard_normal(1000).astype(np.float32)
  values[0] = np.finfo(np.float32).smallest_subnormal
  records = metrics.block_records(
    {"v": values}, {}, first_round=1, num_rounds=1000
  )
  path = tmp_path / "m.jsonl"
  with metrics.MetricsWriter(path) as writer:
    writer.write(records)
  read = np.float32([r["v"] for r in metrics.read_jsonl(path)])
  assert read.tobytes() == values.tobytes()
  assert len(json.dumps(records[1])) < 40  # and not in 17 digits


def write_rounds(path, rounds):
  with metrics.MetricsWriter(path) as writer:
    for r in rounds:
      writer.write([{"round": r, "loss": r / 7}, {"round": r, "eval/a": [r]}])


def test_truncate_keeps_the_bytes_of_what_it_keeps(tmp_path):
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  write_rounds(whole, range(1, 5))
  write_rounds(cut, range(1, 8))
  metrics.truncate_after(cut, 4)
  assert cut.read_bytes() == whole.read_bytes()
  write_rounds(whole, [5])
  write_rounds(cut, [5])
  assert cut.read_bytes() == whole.read_bytes()


def test_a_torn_last_line_is_left_out(tmp_path):
  path = tmp_path / "m.jsonl"
  write_rounds(path, range(1, 3))
  whole = path.read_bytes()
  for cut in range(1, 20):
    path.write_bytes(whole[:-cut])
    assert len(metrics.read_jsonl(path)) == 3
  path.write_bytes(whole + b'{"round": 3')
  metrics.truncate_after(path, 3)
  assert path.read_bytes() == whole


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"loss": 1}', ""])
def test_a_broken_line_is_named(tmp_path, line):
  path = tmp_path / "m.jsonl"
  path.write_text('{"round": 1}\n' + line + '\n{"round": 2}\n')
  with pytest.raises(UserError, match="line 2 of .*--overwrite"):
    metrics.read_jsonl(path)


def test_truncating_nothing_is_nothing(tmp_path):
  metrics.truncate_after(tmp_path / "absent", 3)
  assert not (tmp_path / "absent").exists()


def test_fresh_records_are_those_that_are_read_back(tmp_path):
  """Also of a run that diverged: NaN and Inf are both NaN, never None."""
  rounds = {"loss": np.float32([[0.1, np.nan], [np.inf, 2.0]])}
  fresh = metrics.block_records(
    rounds, {}, first_round=1, num_rounds=2, num_seeds=2
  )
  path = tmp_path / "metrics.jsonl"
  with metrics.MetricsWriter(path, num_seeds=2) as writer:
    writer.write(fresh)
  for got in (fresh, metrics.read_jsonl(path)):
    loss = np.array([record["loss"] for record in got])
    np.testing.assert_array_equal(loss, [[0.1, np.nan], [np.nan, 2.0]])
    assert loss.dtype == np.float64


def test_null_is_read_as_nan(tmp_path):
  path = tmp_path / "m.jsonl"
  path.write_text('{"round": 1, "loss": [null, 2.0]}\n')
  loss = metrics.read_jsonl(path)[0]["loss"]
  assert math.isnan(loss[0]) and loss[1] == 2.0


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, source_env):
  """A limit on file sizes (EFBIG) stands for the disk: a part gets written."""
  path = tmp_path / "m.jsonl"
  code = f"""
import errno, os, resource, signal, fedjax_het.training.metrics as m
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with m.MetricsWriter({str(path)!r}) as writer:
  writer.write([{{"round": 1}}])
  resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
  try:
    writer.write([{{"round": 2, "loss": 1.0}}] * 100)
  except OSError as error:
    assert error.errno == errno.EFBIG
    print("refused")
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    env=source_env,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == "refused\n"
  assert path.read_text() == '{"round": 1}\n'


def read_events(folder):
  """The events of a folder: records of length, crc, data, crc."""
  from tensorboardX.proto.event_pb2 import Event

  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      yield Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]


@pytest.mark.parametrize(
  "num_seeds, loss, mean", [(2, [1.0, 2.0], 1.5), (None, 0.25, 0.25)]
)
def test_tensorboard_mirrors_scalars(tmp_path, num_seeds, loss, mean):
  by_client = {"by_client": [[1.0] * 3] * 2 if num_seeds else [1.0] * 3}
  dropped = {"dropped_clients": [[1], []] if num_seeds else []}
  with metrics.MetricsWriter(
    tmp_path / "m.jsonl", tmp_path / "tb", 3, num_seeds
  ) as writer:
    writer.write([{"round": 3, "loss": loss, **by_client, **dropped}])
  events = list(read_events(tmp_path / "tb"))
  scalars = [(e.step, v) for e in events for v in e.summary.value]
  assert [(s, v.tag, v.simple_value) for s, v in scalars] == [(3, "loss", mean)]
  # A resumed run takes back what was written of its rounds before the kill.
  (start,) = [e for e in events if e.HasField("session_log")]
  assert start.step == 3 and start.session_log.status == start.session_log.START


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(UserError, match=r"pip install 'fedjax-het\[tensorb"):
    metrics.MetricsWriter(tmp_path / "m.jsonl", tmp_path / "tb")
