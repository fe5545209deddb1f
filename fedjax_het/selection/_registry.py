"""Selectors that a string can choose."""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.rounds import Select, Selector
from fedjax_het.selection._hetero_select import hetero_select
from fedjax_het.selection._oort import oort
from fedjax_het.selection._plain import available, by_weight, cyclic
from fedjax_het.selection._power_of_choice import power_of_choice
from fedjax_het.selection._uniform import uniform


class Entry(NamedTuple):
  """summary: one line.

  build: (cohort_size, num_rounds, value or None) -> the selector.
  """

  summary: str
  build: Callable[[int, int, int | None], Select | Selector]


SELECTORS = {
  "uniform": Entry("every client alike", lambda c, rounds, value: uniform(c)),
  "available": Entry(
    "whoever is online alike", lambda c, rounds, value: available(c)
  ),
  "by_weight": Entry(
    "by example counts", lambda c, rounds, value: by_weight(c)
  ),
  "cyclic": Entry("in turn", lambda c, rounds, value: cyclic(c)),
  "power_of_choice": Entry(
    "largest last losses of some candidates (value: how many, default 3 C)",
    lambda c, rounds, value: power_of_choice(c, value or 3 * c),
  ),
  "oort": Entry(
    "large losses on fast devices", lambda c, rounds, value: oort(c)
  ),
  "hetero_select": Entry(
    "loss, diversity, fairness and staleness",
    lambda c, rounds, value: hetero_select(c, rounds),
  ),
}
_WITH_VALUE = ("power_of_choice",)


def parse(spec: str, cohort_size: int, num_rounds: int) -> Select | Selector:
  """The selector that a string names: `NAME` or `power_of_choice:CANDIDATES`.

  Args:
    spec: a key of `SELECTORS`.
    cohort_size: C.
    num_rounds: of the whole run.

  Raises:
    UserError: an unknown name, or a value that does not belong.
  """
  name, colon, text = spec.partition(":")
  if name not in SELECTORS:
    raise unknown("selection", name, SELECTORS)
  if not colon:
    return SELECTORS[name].build(cohort_size, num_rounds, None)
  if name not in _WITH_VALUE or not text.isdecimal():
    raise UserError(
      f"selection {spec!r}: write {name}"
      + (":NUMBER" if name in _WITH_VALUE else " without a value")
    )
  return SELECTORS[name].build(cohort_size, num_rounds, int(text))
