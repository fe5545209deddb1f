"""Layer budgets against closed forms and an independent solver."""

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from fedjax_het.core.errors import UserError
from fedjax_het.masks import budgets

SHAPES = st.lists(
  st.lists(st.integers(1, 30), min_size=2, max_size=4).map(tuple),
  min_size=1,
  max_size=6,
).map(lambda shapes: {f"layer{i}": s for i, s in enumerate(shapes)})
DENSITY = st.floats(0.001, 1)


def params(*sizes):
  return {
    f"Dense_{i}": {"kernel": jnp.zeros((size, 1)), "bias": jnp.zeros(1)}
    for i, size in enumerate(sizes)
  }


def test_erk_closed_form_where_nothing_saturates():
  shapes = {"a": (100, 50), "b": (3, 3, 16, 32)}
  # sum_l eps sum(dims_l) = d P, so eps = d P / sum of all dims
  eps = 0.05 * (5000 + 4608) / (150 + 54)
  found = budgets.erk(shapes, 0.05)
  assert found["a"] == pytest.approx(eps * 150 / 5000)
  assert found["b"] == pytest.approx(eps * 54 / 4608)


def test_erk_closed_form_with_one_dense_layer():
  shapes = {"a": (100, 100), "head": (10, 2)}
  found = budgets.erk(shapes, 0.5)
  assert found["head"] == 1
  assert found["a"] == pytest.approx((0.5 * 10020 - 20) / 10000)


@given(SHAPES, DENSITY)
@settings(deadline=None)
def test_erk_solves_the_capped_equation(shapes, density):
  sizes = {n: math.prod(s) for n, s in shapes.items()}
  raw = {n: sum(s) / sizes[n] for n, s in shapes.items()}
  total = density * sum(sizes.values())

  def excess(eps):
    return sum(min(1, eps * raw[n]) * sizes[n] for n in shapes) - total

  eps = optimize.brentq(excess, 0, 2 / min(raw.values()), xtol=1e-14)
  found = budgets.erk(shapes, density)
  for name in shapes:
    assert found[name] == pytest.approx(min(1, eps * raw[name]), abs=1e-6)


@given(SHAPES, DENSITY, st.sampled_from([budgets.erk, budgets.uniform]))
@settings(deadline=None)
def test_counts_lose_nothing_in_rounding(shapes, density, densities):
  sizes = {n: math.prod(s) for n, s in shapes.items()}
  wanted = densities(shapes, density)
  found = budgets.counts(shapes, wanted)
  assert abs(sum(found.values()) - density * sum(sizes.values())) < 0.5 + 1e-6
  for name, size in sizes.items():
    assert 0 <= found[name] <= size
    assert abs(found[name] - wanted[name] * size) < 1


def test_surviving_is_the_rounded_share_and_static_under_jit():
  assert budgets.surviving(params(1000, 10), 0.2) == 202

  def zeros(p):
    return jnp.zeros(budgets.surviving(p, 0.2))

  assert jax.jit(zeros)(params(1000, 10)).shape == (202,)


def test_a_density_that_removes_a_layer_names_it_and_the_way_out():
  small = params(784, 64, 30)
  with pytest.raises(UserError, match=r"'Dense_2/kernel'.*0\.033334") as error:
    budgets.check_density(small, 0.02)
  advised = float(str(error.value).split()[-1])
  budgets.check_density(small, advised)
  budgets.check_density(params(800), 1 / 800)


@pytest.mark.parametrize("density", [0, -0.1, 1.01, math.nan])
def test_a_density_outside_the_range_is_refused(density):
  with pytest.raises(UserError, match=r"not in \(0, 1\]"):
    budgets.check_density(params(100), density)
  with pytest.raises(UserError, match=r"not in \(0, 1\]"):
    budgets.erk({"a": (3, 4)}, density)


@pytest.mark.parametrize("densities", [{}, {"a": 1.5}, {"a": -0.1}])
def test_counts_refuse_a_missing_or_impossible_density(densities):
  with pytest.raises(UserError, match="'a'"):
    budgets.counts({"a": (3, 4)}, densities)
