"""FedCompass's two partitions: moments of the laws, ranges, mistakes."""

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import partition

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 400))


def counts(parts):
  return np.stack([np.bincount(LABELS[part], minlength=5) for part in parts])


def test_dual_dirichlet_sizes_and_mixtures_have_the_moments_of_their_laws():
  draws = [
    counts(
      partition.dual_dirichlet(
        LABELS, 4, alpha=50.0, size_alpha=8.0, min_size=1, seed=seed
      )
    )
    for seed in range(300)
  ]
  sizes = np.array([d.sum(1) for d in draws]) / 2000
  # Dir(2, 2, 2, 2): mean 1/4, variance (1/4)(3/4) / 9.  Mixtures of a large
  # alpha are nearly even, so sizes are nearly the drawn ones.
  np.testing.assert_allclose(sizes.mean(0), 0.25, atol=0.03)
  np.testing.assert_allclose(sizes.var(0), 0.1875 / 9, rtol=0.3)
  mixture = np.array([d[0] / d[0].sum() for d in draws])
  np.testing.assert_allclose(mixture.mean(0), 0.2, atol=0.02)


def test_a_small_alpha_leaves_a_client_one_or_two_classes():
  """The paper's 0.5 in all: the largest class of a client is most of it."""
  top = []
  for seed in range(40):
    d = counts(partition.dual_dirichlet(LABELS, 5, min_size=1, seed=seed))
    top += (d.max(1) / d.sum(1)).tolist()
  assert np.mean(top) > 0.7
  even = counts(partition.dual_dirichlet(LABELS, 5, alpha=1e4, min_size=1))
  share = even / even.sum(1, keepdims=True)
  np.testing.assert_allclose(share, 0.2, atol=0.05)


def test_dual_dirichlet_redraws_until_all_are_large_enough():
  smallest = [
    min(map(len, partition.dual_dirichlet(LABELS, 6, min_size=60, seed=s)))
    for s in range(5)
  ]
  assert min(smallest) >= 60


def test_class_shares_gives_the_asked_number_of_classes():
  for seed in range(20):
    d = counts(partition.class_shares(LABELS, 6, low=2, high=3, seed=seed))
    assert d.sum() == LABELS.size
    has = (d > 0).sum(1)
    # a class that nobody drew goes to one client more
    assert has.min() >= 2 and has.max() <= 4
    assert (d.sum(0) == 400).all()
  shares = []
  for seed in range(300):
    d = counts(partition.class_shares(LABELS, 2, low=5, high=5, seed=seed))
    shares += (d[0] / 400).tolist()
  rng = np.random.default_rng(1)
  a, b = np.abs(rng.normal(10, 3, (2, 20_000)))
  np.testing.assert_allclose(np.mean(shares), 0.5, atol=0.02)
  np.testing.assert_allclose(np.std(shares), np.std(a / (a + b)), rtol=0.1)


@pytest.mark.parametrize(
  ("spec", "clients", "message"),
  [
    ("dual_dirichlet:0", 4, "alpha must be"),
    ("dual_dirichlet:0.01,min_size=190", 10, "none of 500 draws"),
    ("class_shares:low=0,high=2", 4, "give 1 to 5"),
    ("class_shares:low=3,high=2", 4, "give 1 to 5"),
    ("class_shares:low=5,high=5", 1900, "clients need some"),
  ],
)
def test_mistakes(spec, clients, message):
  with pytest.raises(UserError, match=message):
    partition.parse(spec, LABELS, clients)
