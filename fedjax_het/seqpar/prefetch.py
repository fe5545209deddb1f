"""The next steps' plans, solved on the host while the device computes.

A thread is enough: the devices' work and most of a planner's run outside
Python's lock.
"""

import concurrent.futures
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class Ready(NamedTuple, Generic[Out]):
  """A result that was made ahead.

  value: what `make` returned.
  seconds: wall time that making it took.
  waited: how long the consumer stood still for it.
  """

  value: Out
  seconds: float
  waited: float


def prefetch(
  make: Callable[[In], Out], items: Iterable[In]
) -> Iterator[Ready[Out]]:
  """Yields make(item) for each item, each made while its forerunner is used.

  Args:
    make: runs in a thread, one call at a time; an exception in it is raised
      where its result is due.
    items: read one ahead, in the consumer's thread.

  Yields:
    A `Ready` an item, in order.
  """

  def timed(item):
    start = time.perf_counter()
    value = make(item)
    return value, time.perf_counter() - start

  with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as pool:
    coming = None
    for item in items:
      after = pool.submit(timed, item)
      if coming is not None:
        yield _ready(coming)
      coming = after
    if coming is not None:
      yield _ready(coming)


def _ready(coming: concurrent.futures.Future) -> Ready:
  start = time.perf_counter()
  value, seconds = coming.result()
  return Ready(value, seconds, time.perf_counter() - start)


def overlap(ready: Iterable[Ready]) -> float:
  """The share of the making that nobody waited for, the first one left out.

  NaN for fewer than two.
  """
  later = list(ready)[1:]
  made = sum(one.seconds for one in later)
  waited = sum(min(one.waited, one.seconds) for one in later)
  return 1 - waited / made if made else float("nan")
