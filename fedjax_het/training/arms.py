"""One arm of a comparison: its curves over seeds, read from records."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_het.core.errors import unknown
from fedjax_het.training.metrics import Record


class Arm(NamedTuple):
  """Curves of one method at E evaluations, S seeds.

  name: as shown in legends and tables.
  rounds: i64[E], rounds done at each evaluation.
  accuracy: f64[S, E], in [0, 1].
  up_bytes, down_bytes: f64[S, E], bytes that all clients sent and received up
    to then; None if they were not counted.
  client_accuracy: f64[S, N], each client's accuracy at the end, or None.
  seconds: f64[S, E], virtual time up to then; None without devices.
  joules: f64[S, E], energy of all clients up to then; None without devices.
  class_accuracy: f64[S, K], accuracy on each class at the end, or None.
  """

  name: str
  rounds: np.ndarray
  accuracy: np.ndarray
  up_bytes: np.ndarray | None = None
  down_bytes: np.ndarray | None = None
  client_accuracy: np.ndarray | None = None
  seconds: np.ndarray | None = None
  joules: np.ndarray | None = None
  class_accuracy: np.ndarray | None = None

  @property
  def final(self) -> np.ndarray:
    """f64[S]: accuracy at the last evaluation."""
    return self.accuracy[:, -1]

  @property
  def last_three(self) -> np.ndarray:
    """f64[S]: mean accuracy of the last three evaluations; curves swing."""
    return self.accuracy[:, -3:].mean(axis=1)

  @property
  def sent_bytes(self) -> np.ndarray | None:
    """f64[S, E]: bytes over the wire in both directions."""
    if self.up_bytes is None or self.down_bytes is None:
      return None
    return self.up_bytes + self.down_bytes

  @property
  def worst_decile(self) -> np.ndarray | None:
    """f64[S]: mean accuracy of the ceil(N / 10) clients that fare worst."""
    if self.client_accuracy is None:
      return None
    worst = -(-self.client_accuracy.shape[1] // 10)
    return np.sort(self.client_accuracy, axis=1)[:, :worst].mean(1)


def arm_from_records(
  name: str,
  *runs: Sequence[Record],
  accuracy: str = "eval/accuracy",
  up: str = "up_bytes",
  down: str = "down_bytes",
  clients: str = "eval/client_accuracy",
  seconds: str = "eval/seconds",
  joules: str = "joules",
  classes: str = "eval/class_accuracy",
) -> Arm:
  """Builds an `Arm` from the records of one or more runs.

  Args:
    name: as shown.
    *runs: records of each run (`RunResult.records`, `read_jsonl`); a run of
      one seed has numbers, a run of several has lists over seeds.  All were
      evaluated at the same rounds.
    accuracy, clients, classes: names of records at evaluations.
    up, down, joules: names of bytes and energy a round, of the whole cohort;
      summed up here.
    seconds: name of the virtual time at evaluations; all zero means no devices.

  Returns:
    An `Arm` with the seeds of all runs; what was not recorded is None.

  Raises:
    UserError: if no record holds `accuracy`.
    ValueError: if the runs were evaluated at different rounds.
  """
  for run in runs:
    if not any(accuracy in record for record in run):
      raise unknown("record", accuracy, {key for r in run for key in r})
  rounds = [_rounds(run, accuracy) for run in runs]
  if any(not np.array_equal(rounds[0], other) for other in rounds):
    raise ValueError(f"{name!r}: the runs were evaluated at different rounds")
  return Arm(
    name,
    rounds[0],
    np.concatenate([_curve(run, accuracy) for run in runs]),
    _all([_cumulative(run, up, rounds[0]) for run in runs]),
    _all([_cumulative(run, down, rounds[0]) for run in runs]),
    _all([_last(run, clients) for run in runs]),
    _all([_clock(run, seconds) for run in runs]),
    _all([_cumulative(run, joules, rounds[0]) for run in runs]),
    _all([_last(run, classes) for run in runs]),
  )


def _rounds(run: Sequence[Record], name: str) -> np.ndarray:
  return np.array([record["round"] for record in run if name in record])


def _curve(run: Sequence[Record], name: str) -> np.ndarray:
  """f64[S, E]: the values of one name, a column a record."""
  values = [np.atleast_1d(record[name]) for record in run if name in record]
  return np.stack(values, axis=1).astype(np.float64)


def _clock(run: Sequence[Record], name: str) -> np.ndarray | None:
  """f64[S, E]: the virtual time, None if it stands still."""
  if not any(name in record for record in run):
    return None
  curve = _curve(run, name)
  return curve if curve.any() else None


def _cumulative(
  run: Sequence[Record], name: str, at: np.ndarray
) -> np.ndarray | None:
  """f64[S, E]: the sum of the rounds up to each round in `at`."""
  rounds = _rounds(run, name)
  if not rounds.size:
    return None
  total = np.cumsum(_curve(run, name), axis=1)
  total = np.pad(total, ((0, 0), (1, 0)))
  return total[:, np.searchsorted(rounds, at, side="right")]


def _last(run: Sequence[Record], name: str) -> np.ndarray | None:
  """f64[S, N]: the last values of a name."""
  values = [record[name] for record in run if name in record]
  return np.atleast_2d(np.asarray(values[-1], np.float64)) if values else None


def _all(parts: list[np.ndarray | None]) -> np.ndarray | None:
  """The seeds of all runs, None if any run has none."""
  there = [part for part in parts if part is not None]
  return np.concatenate(there) if len(there) == len(parts) else None
