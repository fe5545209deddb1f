r"""Fits the cost model to measured times of the user's own model and cluster.

A measurement is one micro-batch of one group, forward and backward.  The model
of `cost` is linear in what is sought,

    seconds = a1 sum f s^2 / d + a2 sum s / d + b + (1 / v_d) sum c s / d

with c the exchanged bytes per token: least squares with coefficients >= 0, of
relative errors, so that short micro-batches count as much as long ones.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar.cost import ModelCost

_GOOD_R2 = 0.95
_GOOD_ERROR = 0.2  # relative, of the worst measurement


class Measurement(NamedTuple):
  """What was run: the sequences' tokens, devices of the group, its seconds."""

  lengths: tuple[int, ...]
  degree: int
  seconds: float


class Fit(NamedTuple):
  """The fitted coefficients and how well they explain the measurements.

  model: with quadratic, linear and fixed replaced.
  bandwidth: degree -> bytes/s, for `Cluster.bandwidth`; inf where no cost of
    the exchange could be seen.
  residual: f64[n], measured less predicted seconds.
  r2: share of the variance of the seconds that is explained, at most 1.
  worst: largest relative residual.
  warning: what is wrong with the fit and what to do; "" if nothing is.
  """

  model: ModelCost
  bandwidth: dict[int, float]
  residual: np.ndarray
  r2: float
  worst: float
  warning: str


def fit(
  measured: Sequence[Measurement],
  model: ModelCost,
  bandwidth: Mapping[int, float] | None = None,
) -> Fit:
  """Fits a1, a2, b and the bandwidths.

  Args:
    measured: micro-batches of different lengths, numbers of sequences and
      degrees; degree 1 among them, unless `bandwidth` is known.
    model: gives layers, heads and so on; its three coefficients are replaced.
    bandwidth: degree -> bytes/s that are known; others are fitted.

  Returns:
    A `Fit`.

  Raises:
    UserError: if a time is not positive or the measurements cannot tell the
      coefficients apart; says what is missing.
  """
  known = dict(bandwidth or {})
  seconds = np.array([m.seconds for m in measured], np.float64)
  if not (seconds > 0).all():
    raise UserError("measured seconds must be positive")
  degrees = sorted({m.degree for m in measured} - {1} - set(known))
  columns = np.array([_columns(m, model, degrees) for m in measured])
  columns = columns.reshape(len(measured), 3 + len(degrees))
  explained = np.array(
    [
      _exchanged(m, model) / known[m.degree] if m.degree in known else 0.0
      for m in measured
    ]
  )
  scaled = columns / seconds[:, None]
  size = np.linalg.norm(scaled, axis=0)
  if not size.all() or np.linalg.matrix_rank(scaled / size, 1e-6) < size.size:
    raise UserError(
      f"{len(measured)} measurements cannot tell {size.size} coefficients "
      f"apart (attention, tokens, fixed, bandwidths of {degrees}): measure "
      "degree 1 too, and micro-batches of different lengths and token counts"
    )
  found, _ = nnls(scaled / size, 1 - explained / seconds)
  found = found / size
  residual = seconds - columns @ found - explained
  spread = ((seconds - seconds.mean()) ** 2).sum()
  r2 = 1 - float((residual**2).sum() / spread) if spread else 1.0
  worst = float(np.abs(residual / seconds).max())
  return Fit(
    model._replace(
      quadratic=float(found[0]), linear=float(found[1]), fixed=float(found[2])
    ),
    known
    | {
      d: 1 / float(v) if v else np.inf
      for d, v in zip(degrees, found[3:], strict=True)
    },
    residual,
    r2,
    worst,
    _warning(measured, found, residual / seconds, r2, degrees),
  )


def _columns(m: Measurement, model: ModelCost, degrees: list[int]) -> list:
  s = np.array(m.lengths, np.float64)
  exchanged = _exchanged(m, model)
  return [
    model.causal_factor(m.degree) * float((s * s).sum()) / m.degree,
    float(s.sum()) / m.degree,
    1.0,
    *(exchanged if d == m.degree else 0.0 for d in degrees),
  ]


def _exchanged(m: Measurement, model: ModelCost) -> float:
  """Bytes that each device sends."""
  return model.exchanged_bytes(m.degree) * sum(m.lengths) / m.degree


def _warning(measured, found, relative, r2, degrees) -> str:
  """One line about what a user should not rely on; "" if all is well."""
  parts = []
  worst = int(np.abs(relative).argmax())
  if r2 < _GOOD_R2 or abs(relative[worst]) > _GOOD_ERROR:
    m = measured[worst]
    parts.append(
      f"the fit is poor: R^2 = {r2:.3f}, measurement {worst} (degree "
      f"{m.degree}, {sum(m.lengths)} tokens) is off by {relative[worst]:+.0%}: "
      "measure again on an idle machine, without compilation"
    )
  names = ["attention", "tokens", "fixed cost"]
  names += [f"exchange at degree {d}" for d in degrees]
  unseen = [n for n, v in zip(names, found, strict=True) if v == 0]
  if unseen:
    parts.append(
      f"no cost seen of: {', '.join(unseen)}: measure longer sequences, or "
      "more different ones"
    )
  return "; ".join(parts)
