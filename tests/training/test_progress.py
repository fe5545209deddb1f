"""Progress: what is shown where, and when."""

import io

import pytest
from rich.console import Console

from fedjax_het.core.errors import UserError
from fedjax_het.training.progress import RunProgress, format_duration


class Clock:
  now = 100.0

  def __call__(self):
    return self.now


def lines(mode, steps, *, terminal=False, **options):
  """Runs updates `(seconds later, done, records)`; returns what was printed."""
  out, clock = io.StringIO(), Clock()
  console = Console(file=out, force_terminal=terminal, width=200)
  with RunProgress(
    100, name="toy", mode=mode, console=console, clock=clock, **options
  ) as progress:
    for seconds, done, records in steps:
      clock.now += seconds
      progress.update(done, records)
    progress.message("round 3: [dropped]")
  return out.getvalue().splitlines()


def record(loss, accuracy=None):
  both = [{"round": 1, "loss": loss}]
  return both + ([{"round": 1, "eval/accuracy": accuracy}] if accuracy else [])


def test_plain_lines_hold_rounds_rate_values_and_time():
  got = lines(
    "plain",
    [
      (30, 20, record(2.0)),  # 20 s of it are compilation
      (10, 40, record([1.0, 2.0], [0.5, 0.7])),
      (30, 100, record(0.25, 0.75)),
    ],
    clients_per_round=50,
  )
  assert got == [
    "toy: 20/100 rounds, loss 2, at most 2:00 left",
    # 20 rounds in the last 10 s: the first block does not count any more
    "toy: 40/100 rounds, 100 clients/s, loss 1.5, accuracy 60.0 %, 0:30 left",
    "toy: 100/100 rounds, 100 clients/s, loss 0.25, accuracy 75.0 %, done in "
    "1:10",
    "toy: round 3: [dropped]",
  ]


def test_plain_lines_are_not_too_many():
  steps = [(1, done, record(1.0)) for done in range(1, 101)]
  got = lines("plain", steps, every=10.0)
  assert len(got) == 1 + 9 + 1 + 1  # first, every ten seconds, last, message


def test_a_resumed_run_counts_only_its_own_rounds():
  got = lines("plain", [(10, 60, [])], first_round=50)
  assert got[0] == "toy: 60/100 rounds, at most 0:40 left"


def test_quiet_still_shows_messages():
  assert lines("quiet", [(1, 100, [])]) == ["toy: round 3: [dropped]"]


def test_auto_is_plain_in_a_file_and_a_bar_in_a_terminal():
  steps = [(1, 50, record(0.5))]
  assert lines("auto", steps) == lines("plain", steps)
  bar = "\n".join(lines("auto", steps, terminal=True))
  assert "━" in bar and "50/100 rounds" in bar and "[dropped]" in bar
  assert bar.count("\x1b[?25h") == bar.count("\x1b[?25l")  # the cursor is back


def test_an_unknown_mode_is_a_user_error():
  with pytest.raises(UserError, match="did you mean 'quiet'"):
    RunProgress(1, mode="quite")


@pytest.mark.parametrize(
  "seconds, text",
  [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00")],
)
def test_durations(seconds, text):
  assert format_duration(seconds) == text
