"""Fitting recovers the coefficients that made the measurements."""

import itertools

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import fit, presets
from fedjax_het.seqpar.cost import ModelCost

MODEL = ModelCost(
  quadratic=3e-9,
  linear=2e-5,
  fixed=0.02,
  token_bytes=1e5,
  parameters=1e8,
  layers=12,
  hidden=768,
  heads=12,
  kv_heads=4,
)
BANDWIDTH = {2: 8e9, 4: 6e9}
SHAPES = list(
  itertools.product([(500,), (4000,), (700, 900, 3000), (20_000,)], [1, 2, 4])
)


def seconds(lengths, degree):
  """The documented formula, term by term."""
  total = MODEL.fixed
  for s in lengths:
    total += (MODEL.quadratic * s * s + MODEL.linear * s) / degree
    if degree > 1:
      # 4 tensors, 2 passes, 2 bytes; 4 key/value heads divide by 2 and 4
      sent = 2 * 2 * 12 * (2 * 768 + 2 * 4 * 64)
      total += sent * s / degree / BANDWIDTH[degree]
  return total


def measurements(noise=0.0, seed=0):
  rng = np.random.default_rng(seed)
  return [
    fit.Measurement(s, d, seconds(s, d) * (1 + noise * rng.standard_normal()))
    for s, d in SHAPES
  ]


def test_exact_measurements_give_the_coefficients_back():
  blank = MODEL._replace(quadratic=0.0, linear=0.0, fixed=0.0)
  found = fit.fit(measurements(), blank)
  assert found.model.quadratic == pytest.approx(MODEL.quadratic, rel=1e-6)
  assert found.model.linear == pytest.approx(MODEL.linear, rel=1e-6)
  assert found.model.fixed == pytest.approx(MODEL.fixed, rel=1e-6)
  assert found.bandwidth == pytest.approx(BANDWIDTH, rel=1e-6)
  assert found.r2 == pytest.approx(1) and found.warning == ""
  np.testing.assert_allclose(found.residual, 0, atol=1e-9)


def test_known_bandwidths_need_no_degree_one():
  some = [m for m in measurements() if m.degree > 1]
  found = fit.fit(some, MODEL, BANDWIDTH)
  assert found.model.linear == pytest.approx(MODEL.linear, rel=1e-6)
  assert found.bandwidth == BANDWIDTH
  with pytest.raises(UserError, match="measure degree 1 too"):
    fit.fit(some, MODEL)


def test_noise_moves_them_little_and_residuals_are_the_difference():
  measured = measurements(noise=0.02)
  found = fit.fit(measured, MODEL)
  assert found.model.linear == pytest.approx(MODEL.linear, rel=0.2)
  assert found.r2 > 0.99 and found.warning == ""
  predicted = [
    m.seconds - r for m, r in zip(measured, found.residual, strict=True)
  ]
  exact = [seconds(m.lengths, m.degree) for m in measured]
  np.testing.assert_allclose(predicted, exact, rtol=0.06)


def test_a_poor_fit_says_so():
  spoiled = measurements()
  spoiled[7] = spoiled[7]._replace(seconds=20 * spoiled[7].seconds)
  found = fit.fit(spoiled, MODEL)
  assert "fit is poor" in found.warning and "idle machine" in found.warning
  flat = [m._replace(seconds=0.5) for m in measurements()]
  assert "no cost seen of: attention" in fit.fit(flat, MODEL).warning


def test_too_few_measurements():
  with pytest.raises(UserError, match="3 measurements cannot tell"):
    fit.fit(measurements()[:3], MODEL)
  same = [m for m in measurements() if m.lengths == (500,)]
  with pytest.raises(UserError, match="different lengths"):
    fit.fit(same * 3, MODEL)
  with pytest.raises(UserError, match="positive"):
    fit.fit([m._replace(seconds=0.0) for m in measurements()], MODEL)


def test_the_fit_plans():
  """What `fit` returns is what `plan` takes."""
  from fedjax_het.seqpar.plan import plan

  found = fit.fit(measurements(noise=0.02), MODEL)
  cluster = presets.cluster(1, 4, 8 * 2.0**30, found.bandwidth)
  assert plan([20_000, 500, 700], cluster, found.model).seconds > 0
