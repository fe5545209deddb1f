"""Means over seeds, their intervals, and verdicts on claims.

Intervals are Student's, for few seeds: mean +- t_{n-1} s / sqrt(n).  Arms that
share seeds (same data split, same initial weights) are compared in pairs,
which takes the variation between seeds out of the difference.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Outcome = Literal["PASS", "FAIL", "NULL"]


class Interval(NamedTuple):
  """A mean and its confidence interval; infinite where one seed tells nothing.

  mean, low, high: in the unit of the values.
  seeds: n, how many values.
  level: the confidence, e.g. 0.95.
  """

  mean: float
  low: float
  high: float
  seeds: int
  level: float = 0.95

  def __str__(self) -> str:
    if not math.isfinite(self.high - self.low):
      return f"{self.mean:.4g} (n = {self.seeds})"
    return f"{self.mean:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Verdict(NamedTuple):
  """What a run says about a claim.

  claim: the published claim, in a few words.
  criterion: what had to be measured for it to hold, declared beforehand.
  measured: what was measured, a number or words.
  interval: its confidence interval, None for what does not vary.
  seeds: how many.
  outcome: "PASS", "FAIL", or "NULL" (no effect, as declared beforehand).
  """

  claim: str
  criterion: str
  measured: str | float
  interval: Interval | None
  seeds: int
  outcome: Outcome


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
  """Student's interval for the mean of independent values.

  Args:
    values: one a seed.
    level: the confidence, in (0, 1).

  Returns:
    An `Interval`; from -inf to inf for a single value.  A NaN (a run that
    diverged) makes everything NaN.

  Raises:
    ValueError: without values or with a level outside (0, 1).
  """
  from scipy import stats  # here: plots and loops need no scipy

  values = np.asarray(values, np.float64).ravel()
  n = values.size
  if n == 0 or not 0 < level < 1:
    raise ValueError(f"{n} values and level {level}: need >= 1 and (0, 1)")
  mean = float(values.mean())
  if n == 1:
    return Interval(mean, -math.inf, math.inf, 1, level)
  error = values.std(ddof=1) / math.sqrt(n)
  half = float(stats.t.ppf((1 + level) / 2, n - 1) * error)
  return Interval(mean, mean - half, mean + half, n, level)


def paired_interval(
  a: ArrayLike, b: ArrayLike, level: float = 0.95
) -> Interval:
  """Interval for the mean of a - b, where a[i] and b[i] share seed i.

  Raises:
    ValueError: if the lengths differ.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(f"not pairs: {a.shape} and {b.shape}")
  return mean_interval(a - b, level)


def bootstrap_interval(
  values: ArrayLike, level: float = 0.95, *, seed: int = 0
) -> Interval:
  """Bootstrap interval (BCa, 9,999 resamples) for the mean of few values.

  Args:
    values: one a seed; differences of pairs make it a paired bootstrap.
    level: the confidence, in (0, 1).
    seed: of the resampling.

  Returns:
    An `Interval`; of equal values, or of one, that of `mean_interval`.
  """
  from scipy import stats  # here: plots and loops need no scipy

  values = np.asarray(values, np.float64).ravel()
  plain = mean_interval(values, level)
  if not np.ptp(values) > 0:  # one value, equal ones, or NaN
    return plain
  low, high = stats.bootstrap(
    (values,), np.mean, confidence_level=level, rng=np.random.default_rng(seed)
  ).confidence_interval
  return plain._replace(low=float(low), high=float(high))


def judge(
  interval: Interval,
  *,
  at_least: float | None = None,
  at_most: float | None = None,
  null_within: float | None = None,
) -> Outcome:
  """The outcome that an interval supports: doubt is never a PASS.

  Args:
    interval: what was measured.
    at_least: PASS if the whole interval lies at or above this.
    at_most: PASS if the whole interval lies at or below this.
    null_within: the effect was declared to be nil: NULL if the whole interval
      lies within +- this margin (an equivalence test), else FAIL.

  Returns:
    "PASS", "NULL" or "FAIL"; NaN is FAIL.

  Raises:
    ValueError: unless exactly one criterion is given.
  """
  given = [c is not None for c in (at_least, at_most, null_within)]
  if sum(given) != 1:
    raise ValueError("give one of at_least, at_most, null_within")
  if null_within is not None:
    within = interval.low >= -null_within and interval.high <= null_within
    return "NULL" if within else "FAIL"
  holds = (at_least is not None and interval.low >= at_least) or (
    at_most is not None and interval.high <= at_most
  )
  return "PASS" if holds else "FAIL"


def first_reach(x: ArrayLike, y: ArrayLike, target: float) -> np.ndarray:
  """The x at which each curve first is at the target or above.

  Args:
    x: f[E] or f[S, E], e.g. rounds or bytes.
    y: f[S, E], e.g. accuracy.
    target: what to reach.

  Returns:
    f64[S], inf where it is never reached.
  """
  y = np.asarray(y, np.float64)
  x = np.broadcast_to(np.asarray(x, np.float64), y.shape)
  reached = y >= target
  first = np.take_along_axis(x, reached.argmax(-1)[..., None], -1)[..., 0]
  return np.where(reached.any(-1), first, np.inf)
