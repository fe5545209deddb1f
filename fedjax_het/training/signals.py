"""Ctrl-C and SIGTERM end a run after its block; a second one ends it at once.

A Python signal handler runs only when the main thread is back from XLA, which
may be minutes.  The C handler writes the signal's number to a wake-up pipe at
once, so a small thread reads that: it says that the signal was heard, and it
can end the process at the second one.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SystemExit):
  """A run was stopped by a signal after a whole block.

  Exits with 128 + signum (130 for Ctrl-C, 143 for SIGTERM), as a shell says.
  """

  def __init__(self, signum: int):
    super().__init__(128 + signum)
    self.signum = signum


class GracefulStop:
  """Context in which a first SIGINT or SIGTERM only sets `signum`.

  Off the main thread (where Python allows no handlers) it does nothing.
  """

  def __init__(self, notify: Callable[[str], None]):
    """`notify` is called with a line of text, from another thread."""
    self.signum: int | None = None
    self._notify = notify

  def __enter__(self) -> "GracefulStop":
    self._on = threading.current_thread() is threading.main_thread()
    if self._on:
      self._read, self._write = os.pipe()
      os.set_blocking(self._write, False)
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
      self._before = {s: signal.signal(s, self._handle) for s in _SIGNALS}
      self._old_pipe = signal.set_wakeup_fd(
        self._write, warn_on_full_buffer=False
      )
    return self

  def __exit__(self, *_: object) -> None:
    if self._on:
      signal.set_wakeup_fd(self._old_pipe)
      for signum, handler in self._before.items():
        # None: installed by C code, which Python cannot put back
        signal.signal(signum, signal.SIG_DFL if handler is None else handler)
      os.close(self._write)
      self._thread.join()
      os.close(self._read)

  def _handle(self, signum: int, frame: object) -> None:
    self.signum = self.signum or signum

  def _watch(self) -> None:
    heard = False
    while number := os.read(self._read, 1):
      if number[0] not in _SIGNALS:
        continue
      if heard:
        if sys.stderr.isatty():
          os.write(2, b"\x1b[?25h\n")  # rich hid the cursor
        os._exit(128 + number[0])
      heard = True
      self._notify(
        f"{signal.Signals(number[0]).name}: finishing this block of rounds and "
        "saving it; once more to stop at once"
      )
