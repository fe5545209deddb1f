"""Masks of whole units, against a plain ranking."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.masks import units

PARAMS = {
  "conv": jnp.zeros((3, 3, 2, 8)),
  "dense": jnp.zeros((8, 5)),
  "bias": jnp.zeros(5),
}


def test_how_many_units_stay():
  assert units.unit_counts(PARAMS, 0.4) == {"conv": 3, "dense": 2}
  assert units.unit_counts(PARAMS, 0.4, ["dense"]) == {"conv": 3, "dense": 5}
  assert units.unit_counts(PARAMS, 0.01) == {"conv": 1, "dense": 1}


def test_the_units_of_the_largest_sums_stay():
  rng = np.random.default_rng(0)
  scores = {k: rng.normal(size=v.shape) for k, v in PARAMS.items()}
  scores["dense"][:] = 1.0  # ties: the lower units
  mask = units.top_units(
    {k: jnp.asarray(v, jnp.float32) for k, v in scores.items()},
    {"conv": 3, "dense": 2},
  )
  best = np.argsort(-scores["conv"].sum((0, 1, 2)))[:3]
  want = np.zeros((3, 3, 2, 8), bool)
  want[..., best] = True
  np.testing.assert_array_equal(mask["conv"], want)
  np.testing.assert_array_equal(mask["dense"], [[1, 1, 0, 0, 0]] * 8)
  assert np.all(mask["bias"])


def test_what_does_not_fit_is_refused():
  with pytest.raises(UserError, match="density 0 is not in"):
    units.unit_counts(PARAMS, 0.0)
  with pytest.raises(UserError, match="did you mean 'dense'"):
    units.unit_counts(PARAMS, 0.5, ["dens"])
