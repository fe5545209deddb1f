"""Results made ahead: in order, in a thread, with their waiting measured."""

import threading
import time

import pytest

from fedjax_het.seqpar.prefetch import Ready, overlap, prefetch


def test_each_is_made_while_its_forerunner_is_used():
  made, used = [], []
  second_made = threading.Event()

  def make(item):
    assert threading.current_thread() is not threading.main_thread()
    made.append(item)
    if item == 1:
      second_made.set()
    return 10 * item

  for ready in prefetch(make, range(4)):
    if ready.value == 0:
      assert second_made.wait(10)  # nobody has asked for it yet
    assert len(made) <= len(used) + 2  # one ahead, not all
    used.append(ready.value)
  assert used == [0, 10, 20, 30] and made == [0, 1, 2, 3]
  assert list(prefetch(make, [])) == []


def test_waiting_is_what_the_work_did_not_hide():
  done = [threading.Event() for _ in range(3)]

  def make(item):
    time.sleep(0.3)
    done[item].set()

  ready = []
  for one in prefetch(make, range(3)):
    ready.append(one)
    if len(ready) == 1:
      assert done[1].wait(10)  # work that takes longer than the making
      time.sleep(0.05)
  assert ready[0].waited > 0.2  # nothing to do meanwhile
  assert ready[1].waited < 0.15 < 0.29 < ready[1].seconds
  assert ready[2].waited > 0.2  # made from when its forerunner was taken
  assert 0.2 < overlap(ready) < 0.8


def test_overlap_by_hand():
  steps = [Ready(None, 9, 9), Ready(None, 2, 0), Ready(None, 2, 1)]
  assert overlap(steps) == 0.75
  assert overlap([Ready(None, 1, 5)]) != overlap([Ready(None, 1, 5)])  # NaN


def test_an_exception_comes_where_its_result_is_due():
  def make(item):
    if item == 1:
      raise ValueError("the second")
    return item

  seen = []
  with pytest.raises(ValueError, match="the second"):
    for ready in prefetch(make, range(3)):
      seen.append(ready.value)
  assert seen == [0]
