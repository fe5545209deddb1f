"""Progress of a run: a bar in a terminal, a line now and then elsewhere."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from fedjax_het.core.errors import unknown
from fedjax_het.training.metrics import Record

MODES = ("auto", "bar", "plain", "quiet")
# Record name -> how it is shown; the first that a run has, of each label.
_SHOWN = (
  ("loss", "loss"),
  ("eval/loss", "loss"),
  ("eval/accuracy", "accuracy"),
  ("accuracy", "accuracy"),
)


class RunProgress:
  """Shows rounds, clients/s, loss, accuracy and the time left.

  Use as a context manager.  Everything goes to stderr: stdout is for results.
  """

  def __init__(
    self,
    total_rounds: int,
    *,
    name: str = "train",
    mode: str = "auto",
    clients_per_round: int | None = None,
    first_round: int = 0,
    every: float = 10.0,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Prepares; nothing is shown before the context is entered.

    Args:
      total_rounds: R.
      name: shown in front.
      mode: "bar", "plain" (lines), "quiet" (warnings only), or "auto": a bar
        in a terminal, lines in a file or a notebook.
      clients_per_round: client updates a round, for clients/s.
      first_round: rounds that a resumed run has behind it.
      every: seconds between plain lines, at least.
      console: where to; stderr by default.
      clock: seconds; replaced in tests.

    Raises:
      UserError: for an unknown mode.
    """
    if mode not in MODES:
      raise unknown("progress mode", mode, MODES)
    self._console = console or Console(stderr=True, highlight=False)
    if mode == "auto":
      live = self._console.is_terminal and not self._console.is_jupyter
      mode = "bar" if live else "plain"
    self._mode, self._name, self._every = mode, name, every
    self._total, self._clients = total_rounds, clients_per_round
    self._clock, self._values = clock, {}
    self._start, self._first = clock(), first_round
    self._shown: float | None = None  # when the last plain line was printed
    self._warm: tuple[float, int] | None = None
    self._bar: Progress | None = None

  def __enter__(self) -> "RunProgress":
    self._start = self._clock()
    if self._mode == "bar":
      self._bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[status]}", markup=False),
        console=self._console,
      )
      self._task = self._bar.add_task(
        self._name,
        total=self._total,
        completed=self._first,
        status=f"{self._first}/{self._total} rounds, compiling",
      )
      self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._bar is not None:
      self._bar.stop()

  def update(self, done: int, records: Iterable[Record]) -> None:
    """Tells that `done` rounds are behind us, with the block's records."""
    now = self._clock()
    status = self._status(done, now, records)
    if self._warm is None:
      self._warm = now, done
    if self._bar is not None:
      self._bar.update(self._task, completed=done, status=status)
    elif self._mode == "plain":
      due = self._shown is None or now - self._shown >= self._every
      if due or done >= self._total:
        self._shown = now
        self._print(f"{self._name}: {status}")

  def message(self, text: str) -> None:
    """Prints a line that must be seen in every mode, above the bar."""
    self._print(f"{self._name}: {text}")

  def _print(self, text: str) -> None:
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def _status(self, done: int, now: float, records: Iterable[Record]) -> str:
    rate = self._rate(done, now)
    parts = [f"{done}/{self._total} rounds"]
    if self._clients and rate and self._warm:
      parts.append(f"{rate * self._clients:,.0f} clients/s")
    for record in records:
      for name, label in _SHOWN:
        if name in record:
          self._values[name] = label, float(np.mean(record[name]))
    shown = set()
    for name, label in _SHOWN:
      if name in self._values and label not in shown:
        shown.add(label)
        parts.append(_value(*self._values[name]))
    if done < self._total and rate:
      bound = "" if self._warm else "at most "  # compilation is not repeated
      left = format_duration((self._total - done) / rate)
      parts.append(f"{bound}{left} left")
    elif done >= self._total:
      parts.append(f"done in {format_duration(now - self._start)}")
    return ", ".join(parts)

  def _rate(self, done: int, now: float) -> float:
    """Rounds a second, without the first block, which holds compilation."""
    since, before = self._warm or (self._start, self._first)
    return (done - before) / (now - since) if now > since else 0.0


def _value(label: str, value: Any) -> str:
  if label == "accuracy" and math.isfinite(value):
    return f"accuracy {100 * value:.1f} %"
  return f"{label} {value:.4g}"


def format_duration(seconds: float) -> str:
  """Seconds as m:ss or h:mm:ss.

  Example:
    >>> format_duration(7), format_duration(11045)
    ('0:07', '3:04:05')
  """
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02d}:{seconds:02d}"
  return f"{minutes}:{seconds:02d}"
