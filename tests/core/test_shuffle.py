"""The swap-or-not shuffle is a bijection and looks uniform."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.core import shuffle

_permutation = jax.jit(
  lambda seed, length, size: shuffle.permute(
    jax.random.key(seed), jnp.arange(size), length
  ),
  static_argnums=2,
)


@given(length=st.integers(1, 300), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_every_element_once(length, seed):
  # positions beyond the length are not asked for: a traced length, one trace
  order = np.asarray(_permutation(seed, length, 300))[:length]
  assert sorted(order) == list(range(length))


@pytest.mark.parametrize("length", [2, 3, 4])
def test_all_permutations_equally_likely(length):
  draws = 6000
  orders = jax.vmap(
    lambda seed: shuffle.permute(
      jax.random.key(seed), jnp.arange(length), length
    )
  )(jnp.arange(draws))
  names = list(itertools.permutations(range(length)))
  seen = {name: 0 for name in names}
  for order in np.asarray(orders):
    seen[tuple(order)] += 1
  assert scipy.stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_position_and_pairs_are_uniform_for_a_longer_list():
  length, draws = 37, 8000
  orders = np.asarray(
    jax.vmap(
      lambda seed: shuffle.permute(
        jax.random.key(seed), jnp.arange(length), length
      )
    )(jnp.arange(draws))
  )
  for position in (0, 17, 36):
    counts = np.bincount(orders[:, position], minlength=length)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
  # neighbours: the difference modulo n of two elements is uniform on 1..n-1
  gap = (orders[:, 1] - orders[:, 0]) % length
  counts = np.bincount(gap, minlength=length)[1:]
  assert scipy.stats.chisquare(counts).pvalue > 1e-4
