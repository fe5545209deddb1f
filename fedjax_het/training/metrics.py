"""Metrics as JSON lines: what a block returned, a line a round.

No line holds a wall-clock time, so the file of a run that was killed and
resumed is the file of an uninterrupted run, byte for byte.  NaN and Inf are
written as null (JSON has no other word) and read back as NaN.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.training.files import storage_errors, write_text_atomic

Record = dict[str, Any]


def summarise_cohort(cohort: Any) -> dict[str, np.ndarray]:
  """What is logged of a `core.cohort.Cohort`: sums over clients.

  Args:
    cohort: its arrays are [..., C], on the host.

  Returns:
    Arrays [...]: each client metric as f32 mean weighted by `weight` (NaN if
    all were dropped); up_bytes, down_bytes and steps, summed over the cohort
    (dropped uploads were sent as well, and what a selector asks is in
    down_bytes); dropped, how many uploads of those that arrived in time;
    dropped_clients, an object array of lists of their ids; and, if the data
    have devices, joules, summed, and absent, how many were offline or late.
  """
  ok, ids = np.asarray(cohort.ok), np.asarray(cohort.ids)
  weight = np.asarray(cohort.weight, np.float64)
  total = weight.sum(-1)
  total = np.where(total > 0, total, np.nan)
  summary = {
    name: ((weight * np.asarray(value)).sum(-1) / total).astype(np.float32)
    for name, value in cohort.metrics.items()
  }
  for name in ("up_bytes", "down_bytes", "steps"):
    summary[name] = np.asarray(getattr(cohort, name)).sum(-1, dtype=np.int64)
  if cohort.probe_bytes is not None:
    summary["down_bytes"] += np.asarray(cohort.probe_bytes, np.int64)
  present = np.asarray(cohort.present)
  if cohort.joules is not None:
    summary["joules"] = np.asarray(cohort.joules).sum(-1)
    summary["absent"] = (~present).sum(-1)
  bad = present & ~ok
  dropped = np.empty(ok.shape[:-1], object)
  for place in np.ndindex(dropped.shape):
    dropped[place] = ids[place][bad[place]].tolist()
  return {**summary, "dropped": bad.sum(-1), "dropped_clients": dropped}


def block_records(
  rounds: Mapping[str, Any],
  evaluation: Mapping[str, Any],
  *,
  first_round: int,
  num_rounds: int,
  num_seeds: int | None = None,
) -> list[Record]:
  """The lines of one block: one a round, then one for its evaluation.

  Args:
    rounds: name -> array [R, ...], or [S, R, ...] with `num_seeds`.
    evaluation: name -> array [...], or [S, ...]; nested dicts are joined by /.
    first_round: number of the block's first round; rounds count from 1.
    num_rounds: R.
    num_seeds: S, if the block runs S seeds at once.

  Returns:
    Dicts {"round": r, name: value, ...} and {"round": last, "eval/name": ...};
    a value is a list over seeds where there are seeds.

  Raises:
    ValueError: if an array has no axis of rounds where one is due.
  """
  lead = (num_rounds,) if num_seeds is None else (num_seeds, num_rounds)
  rounds = {k: np.asarray(v) for k, v in _join(rounds).items()}
  for name, value in rounds.items():
    if value.shape[: len(lead)] != lead:
      raise ValueError(f"{name!r} is {value.shape}, it must start with {lead}")
  records = [
    {"round": first_round + r}
    | {
      name: _listed(value[r] if num_seeds is None else value[:, r])
      for name, value in rounds.items()
    }
    for r in range(num_rounds)
  ]
  evaluation = {
    f"eval/{name}": _listed(np.asarray(value))
    for name, value in _join(evaluation).items()
  }
  if evaluation:
    records.append({"round": first_round + num_rounds - 1} | evaluation)
  return records


class MetricsWriter:
  """Appends records to a JSONL file, and to TensorBoard if asked."""

  def __init__(
    self,
    path: str | os.PathLike,
    tensorboard: str | os.PathLike | None = None,
    first_round: int = 1,
    num_seeds: int | None = None,
  ):
    """Opens a file to append to.

    Args:
      path: the JSONL file.
      tensorboard: a folder for event files, or None; they get the records
        that are numbers, or S numbers (their mean), not those by client.
      first_round: TensorBoard forgets rounds from this one on (after a kill).
      num_seeds: S, or None if records are of one seed.

    Raises:
      UserError: if TensorBoard is asked for and not installed.
    """
    self._path = pathlib.Path(path)
    self._board, self._num_seeds = None, num_seeds
    if tensorboard is not None:
      try:
        from tensorboardX import SummaryWriter
      except ImportError:
        raise UserError(
          "--tensorboard needs a package that is not installed: "
          "pip install 'fedjax-het[tensorboard]'"
        ) from None
      self._board = SummaryWriter(
        os.fspath(tensorboard), purge_step=first_round
      )

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_: object) -> None:
    if self._board is not None:
      self._board.close()

  def write(self, records: Iterable[Record]) -> None:
    """Appends the records, all or none, and waits until they are on disk.

    Raises:
      UserError: if the disk is full; the file is then as before.
    """
    records = list(records)
    text = "".join(
      json.dumps(_null_for_nan(r), allow_nan=False) + "\n" for r in records
    )
    with storage_errors(self._path), open(self._path, "ab", 0) as file:
      size = file.tell()
      try:
        data = memoryview(text.encode())
        while data:  # a nearly full disk takes a part, then raises
          data = data[file.write(data) :]
        os.fsync(file.fileno())
      except OSError:
        file.truncate(size)
        raise
    if self._board is not None:
      for record in records:
        for name, value in record.items():
          shape = np.shape(value) if name != "dropped_clients" else None
          if name != "round" and shape in ((), (self._num_seeds,)):
            mean = np.mean(np.asarray(value, np.float64))
            self._board.add_scalar(name, mean, record["round"])
      self._board.flush()


def read_jsonl(path: str | os.PathLike) -> list[Record]:
  """Reads a metrics file; a last line without its end (a kill) is left out.

  Raises:
    UserError: if another line is not JSON.
  """
  return [_nan_for_null(json.loads(line)) for line in _whole_lines(path)]


def truncate_after(path: str | os.PathLike, last_round: int) -> None:
  """Drops the records of later rounds, atomically; kept lines keep their bytes.

  Args:
    path: a metrics file, which may be absent.
    last_round: the last round to keep.
  """
  if pathlib.Path(path).exists():
    kept = [
      line
      for line in _whole_lines(path)
      if json.loads(line)["round"] <= last_round
    ]
    write_text_atomic(path, "".join(line + "\n" for line in kept))


def _whole_lines(path: str | os.PathLike) -> list[str]:
  *lines, _ = pathlib.Path(path).read_text("utf-8").split("\n")
  for number, line in enumerate(lines, 1):
    try:
      json.loads(line)["round"]
    except (ValueError, TypeError, KeyError):
      raise UserError(
        f"line {number} of {str(path)!r} is not a metrics record: restore the "
        "file, or start again with --overwrite"
      ) from None
  return lines


def _join(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts as one, names joined by a slash."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _join(value, f"{prefix}{name}/")
    else:
      flat[prefix + name] = value
  return flat


def _listed(value: np.ndarray | np.generic | list) -> Any:
  """Plain numbers in lists: floats in the fewest digits that give them back."""
  value = np.asarray(value)
  if value.dtype.kind in "biuO":
    return value.tolist()
  if value.dtype.kind != "f":  # bfloat16 and its kin
    value = value.astype(np.float32)
  short = value.astype(str).astype(np.float64)
  # NaN, not Inf, so that fresh records equal those read back from the file.
  return np.where(np.isfinite(short), short, np.nan).tolist()


def _null_for_nan(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _null_for_nan(part) for name, part in value.items()}
  if isinstance(value, list):
    return [_null_for_nan(part) for part in value]
  return None if isinstance(value, float) and value != value else value


def _nan_for_null(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _nan_for_null(part) for name, part in value.items()}
  if isinstance(value, list):
    return [_nan_for_null(part) for part in value]
  return float("nan") if value is None else value
