"""Who trains this round.

`uniform` is a plain function of (key, data); the others are `Selector`s, which
may remember what earlier rounds showed: give the same one to
`rounds.init_state(..., selector=)` and `rounds.make_round`.
"""

from fedjax_het.selection._fresh_loss import fresh_loss
from fedjax_het.selection._hetero_select import hetero_select
from fedjax_het.selection._oort import oort
from fedjax_het.selection._plain import available, by_weight, cyclic
from fedjax_het.selection._power_of_choice import power_of_choice
from fedjax_het.selection._registry import SELECTORS, parse
from fedjax_het.selection._uniform import check_cohort_size, uniform

__all__ = [
  "SELECTORS",
  "available",
  "by_weight",
  "check_cohort_size",
  "cyclic",
  "fresh_loss",
  "hetero_select",
  "oort",
  "parse",
  "power_of_choice",
  "uniform",
]
