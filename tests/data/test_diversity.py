"""Meters against loops, SciPy, scikit-learn and what they must be by theory."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats

from fedjax_het.core.errors import UserError
from fedjax_het.data import diversity, partition

ORDERS = (0, 0.5, 1, 1.001, 2, 3.7, np.inf)


@pytest.fixture
def counts():
  """Twelve clients of unequal sizes, with empty groups."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 4, (12, 7)) * rng.integers(1, 9, (12, 1)) + np.eye(
    12, 7, dtype=int
  )


def _hill(p, q):
  """By the definition, in a loop."""
  p = [x / sum(p) for x in p if x > 0]
  if q == 1:
    return math.exp(-sum(x * math.log(x) for x in p))
  if q == np.inf:
    return 1 / max(p)
  return sum(x**q for x in p) ** (1 / (1 - q))


@pytest.mark.parametrize("q", ORDERS)
def test_hill_is_its_definition(counts, q):
  got = diversity.hill(counts, q)
  np.testing.assert_allclose(got, [_hill(row, q) for row in counts], rtol=1e-9)


@pytest.mark.parametrize("q", ORDERS)
def test_hill_counts_equal_kinds_and_only_those(q):
  assert diversity.hill([3, 3, 3, 3, 0], q) == pytest.approx(4)
  assert diversity.hill([0, 8, 0], q) == pytest.approx(1)
  assert diversity.normalised_hill([2, 2, 2], q) == pytest.approx(1)
  assert diversity.normalised_hill([2, 0, 0], q) == pytest.approx(0)
  assert diversity.normalised_hill([5], q) == 0


def test_hill_at_1_is_a_limit_and_falls_with_q(counts):
  near = [diversity.hill(counts, 1 + e) for e in (-1e-6, 1e-6)]
  at_1 = diversity.hill(counts, 1)
  np.testing.assert_allclose(at_1, np.mean(near, axis=0), rtol=1e-8)
  np.testing.assert_allclose(
    at_1, np.exp(scipy.stats.entropy(counts, axis=1)), rtol=1e-12
  )
  by_order = np.array([diversity.hill(counts, q) for q in ORDERS])
  assert (np.diff(by_order, axis=0) <= 1e-9).all()


def test_sizes_give_the_effective_number_of_clients():
  sizes = np.array([10, 20, 70])
  p = sizes / 100
  assert diversity.hill(sizes, 2) == pytest.approx(1 / (p**2).sum())
  assert diversity.hill(np.full(9, 7), 2) == pytest.approx(9)


@pytest.mark.parametrize("q", ORDERS)
def test_decomposition_is_josts_formula(counts, q):
  got = diversity.decompose(counts, q)
  w = counts.sum(axis=1) / counts.sum()
  p = counts / counts.sum(axis=1, keepdims=True)
  pooled = [sum(w[j] * p[j, k] for j in range(12)) for k in range(7)]
  if q == 1:
    alpha = math.exp(sum(w[j] * math.log(_hill(p[j], 1)) for j in range(12)))
  elif q == np.inf:
    alpha = w.max() / max(w[j] * p[j, k] for j in range(12) for k in range(7))
  else:
    inner = sum(
      (w[j] * p[j, k]) ** q for j in range(12) for k in range(7) if p[j, k] > 0
    )
    alpha = (inner / sum(x**q for x in w)) ** (1 / (1 - q))
  assert got.alpha == pytest.approx(alpha, rel=1e-9)
  assert got.gamma == pytest.approx(_hill(pooled, q), rel=1e-9)
  assert got.alpha * got.beta == pytest.approx(got.gamma)


@pytest.mark.parametrize("q", ORDERS)
def test_beta_is_1_for_equal_clients_and_theirs_for_disjoint_ones(q):
  shares = np.array([1, 2, 3, 0])
  alike = np.stack([shares, 5 * shares, 2 * shares])
  assert diversity.decompose(alike, q).beta == pytest.approx(1)
  disjoint = np.kron(np.diag([6, 6, 6]), [1, 1])
  assert diversity.decompose(disjoint, q).beta == pytest.approx(3)
  assert diversity.decompose(disjoint, q).alpha == pytest.approx(2)
  sizes = np.array([1, 4, 15])
  unequal = diversity.decompose(np.diag(sizes), q)
  assert unequal.beta == pytest.approx(diversity.hill(sizes, q))


def test_log_beta_is_mutual_information_and_the_mean_divergence(counts):
  beta = diversity.decompose(counts).beta
  p = counts / counts.sum()
  outside = np.outer(p.sum(axis=1), p.sum(axis=0))
  information = scipy.stats.entropy(p.ravel(), outside.ravel())
  assert math.log(beta) == pytest.approx(information)
  sizes = counts.sum(axis=1)
  each = diversity.divergence(counts, "kullback_leibler")
  assert np.average(each, weights=sizes) == pytest.approx(information)
  client = np.repeat(np.arange(12), sizes)
  group = np.concatenate([np.repeat(np.arange(7), row) for row in counts])
  from sklearn.metrics import mutual_info_score

  assert mutual_info_score(client, group) == pytest.approx(information)


def test_divergences_are_scipys(counts):
  p = counts / counts.sum(axis=1, keepdims=True)
  pooled = counts.sum(axis=0) / counts.sum()
  np.testing.assert_allclose(
    diversity.divergence(counts), [abs(row - pooled).sum() / 2 for row in p]
  )
  np.testing.assert_allclose(
    diversity.divergence(counts, "jensen_shannon"),
    [scipy.spatial.distance.jensenshannon(row, pooled) ** 2 for row in p],
  )
  np.testing.assert_allclose(
    diversity.divergence(counts, "kullback_leibler"),
    scipy.stats.entropy(p, np.broadcast_to(pooled, p.shape), axis=1),
  )


def test_beta_follows_the_dirichlet_concentration():
  """GeoDiv's claim for labels: Spearman of beta and alpha at least 0.95."""
  labels = np.random.default_rng(0).integers(0, 10, 4000)
  alphas = np.geomspace(0.02, 20, 12)
  for name in ("dirichlet:{},min_size=1", "inner_dirichlet:{}"):
    beta = []
    for i, alpha in enumerate(alphas):
      parts = partition.parse(name.format(alpha), labels, 20, seed=i)
      beta.append(
        diversity.decompose(diversity.group_counts(parts, labels)).beta
      )
    assert scipy.stats.spearmanr(alphas, beta).statistic <= -0.95, (name, beta)


def test_group_counts_by_hand():
  got = diversity.group_counts([[0, 2], [1, 3, 4]], [0, 2, 0, 2, 1])
  assert got.tolist() == [[2, 0, 0], [0, 1, 2]]


@pytest.fixture
def clouds():
  rng = np.random.default_rng(1)
  features = rng.normal(size=(90, 4)) @ rng.normal(size=(4, 4))
  features[:30] += 2
  order = rng.permutation(90)
  return features, [order[:20], order[20:50], order[50:85]]


def test_frechet_is_the_formula_with_a_matrix_root(clouds):
  features, parts = clouds
  everybody = features[np.concatenate(parts)]
  mean, s = everybody.mean(axis=0), np.cov(everybody.T, bias=True)
  want = []
  for part in parts:
    own, t = features[part].mean(axis=0), np.cov(features[part].T, bias=True)
    root = scipy.linalg.sqrtm(t @ s)
    want.append(((own - mean) ** 2).sum() + np.trace(t + s - 2 * root.real))
  np.testing.assert_allclose(diversity.frechet(features, parts), want)


def test_frechet_in_one_dimension_and_of_equal_clients():
  x = np.array([0.0, 1.0, 3.0, 3.0, 4.0, 7.0])[:, None]
  parts = [[0, 1], [2, 3, 4, 5]]
  want = [
    (x[p].mean() - x.mean()) ** 2 + (x[p].std() - x.std()) ** 2 for p in parts
  ]
  np.testing.assert_allclose(diversity.frechet(x, parts), want)
  twice = np.random.default_rng(0).normal(size=(25, 6)).repeat(2, axis=0)
  same = [np.arange(0, 50, 2), np.arange(1, 50, 2)]
  np.testing.assert_allclose(diversity.frechet(twice, same), 0, atol=1e-6)
  np.testing.assert_allclose(diversity.squared_mmd(twice, same), 0, atol=1e-9)


def test_mmd_is_three_means_of_kernels(clouds):
  features, parts = clouds
  rows = np.concatenate(parts)
  distances = [
    math.dist(features[i], features[j])
    for n, i in enumerate(rows)
    for j in rows[:n]
  ]
  for bandwidth in (0.8, None):
    s = bandwidth or np.median(distances)

    def mean(a, b, s=s):
      return np.mean(
        [
          math.exp(-(math.dist(features[i], features[j]) ** 2) / (2 * s * s))
          for i in a
          for j in b
        ]
      )

    want = [
      mean(part, part) - 2 * mean(part, rows) + mean(rows, rows)
      for part in parts
    ]
    got = diversity.squared_mmd(features, parts, bandwidth=bandwidth)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-12)


def test_misuse_is_told():
  for counts in ([1, -1], [[0, 0], [1, 1]], [np.nan, 1], 3.0):
    with pytest.raises(ValueError, match="counts"):
      diversity.hill(counts)
  with pytest.raises(ValueError, match="q must be"):
    diversity.hill([1, 2], -1)
  with pytest.raises(ValueError, match=r"\[N, K\]"):
    diversity.decompose([1, 2, 3])
  with pytest.raises(UserError, match="did you mean 'jensen_shannon'"):
    diversity.divergence([[1, 2]], "jensen_shanon")
  with pytest.raises(ValueError, match="finite"):
    diversity.frechet([[np.inf]], [[0]])
  with pytest.raises(ValueError, match="bandwidth"):
    diversity.squared_mmd(np.ones((4, 2)), [[0, 1], [2, 3]])
