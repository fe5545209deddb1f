"""Descriptions of a partition, against SciPy and counts made by hand."""

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from fedjax_het.data import describe, federated, sources


@pytest.fixture
def data():
  y = np.array([0, 0, 0, 0, 1, 1, 2, 2], np.int32)
  x = np.zeros((8, 1), np.float32)
  dataset = sources.Dataset(x, y, x[:1], y[:1], 3, "toy", "", "")
  return federated.federate(dataset, [[0, 1], [2, 3, 4, 5], [6, 7]])


def test_effective_classes_is_the_exponential_of_the_entropy():
  counts = np.random.default_rng(0).integers(0, 5, (20, 6)) + np.eye(20, 6)
  expected = np.exp(scipy.stats.entropy(counts, axis=1))
  np.testing.assert_allclose(describe.effective_classes(counts), expected)


def test_summary_by_hand(data):
  got = describe.summary(data)
  assert got["examples"].tolist() == [2, 4, 2]
  assert got["train examples"].tolist() == [1, 3, 1]
  assert got["test examples"].tolist() == [1, 1, 1]
  assert got["classes"].tolist() == [1, 2, 1]
  np.testing.assert_allclose(got["effective classes"], [1, 2, 1])
  # all together: 1/2, 1/4, 1/4
  np.testing.assert_allclose(got["label distance"], [0.5, 0.25, 0.75])


def test_table_has_minimum_median_and_maximum(data):
  lines = describe.table(data).splitlines()
  assert lines[0].split() == ["3", "clients", "min", "median", "max"]
  assert lines[1].split() == ["examples", "2", "2", "4"]
  assert lines[-1].split() == ["label", "distance", "0.25", "0.50", "0.75"]
  assert len({len(line) for line in lines}) == 1


def test_skew_by_hand():
  parts = [[0, 1], [2, 3, 4, 5]]
  groups = [0, 0, 0, 1, 1, 2]
  z = np.array([[1.0], [1], [4], [4], [4], [4]])
  got = describe.skew_summary(parts, groups, z)
  assert got["examples"].tolist() == [2, 4]
  assert got["clusters"].tolist() == [1, 3]
  np.testing.assert_allclose(got["effective clusters"], [1, 2**1.5])
  # all together: 1/2, 1/3, 1/6
  np.testing.assert_allclose(got["cluster distance"], [0.5, 0.25])
  # mean 3, variance 2; the clients' variances are 0
  np.testing.assert_allclose(got["Frechet distance"], [4 + 2, 1 + 2])
  lines = describe.skew_table(parts, groups, z).splitlines()
  assert lines[0].split() == ["2", "clients", "min", "median", "max"]
  assert lines[2].split() == ["clusters", "1", "2", "3"]
  # gamma / alpha, in bits: H(1/2, 1/3, 1/6) - (2 * 0 + 4 * 1.5) / 6
  pooled = 0.5 + np.log2(3) / 3 + np.log2(6) / 6
  assert lines[-1].split() == [
    "distinct",
    "clients",
    f"{2 ** (pooled - 1):.2f}",
  ]
  assert len({len(line) for line in lines}) == 1
  assert "Frechet distance" not in describe.skew_summary(parts, groups)


def test_plot_stacks_each_clients_classes(data, tmp_path):
  path = tmp_path / "labels.png"
  ax = describe.plot_label_distribution(data, path)
  heights = np.array([bar.get_height() for bar in ax.patches]).reshape(3, 3)
  assert heights.T.tolist() == [[2, 0, 0], [2, 2, 0], [0, 0, 2]]
  tops = np.array([bar.get_y() for bar in ax.patches]).reshape(3, 3)
  assert tops[2].tolist() == [2, 4, 0]
  with Image.open(path) as picture:
    assert picture.format == "PNG"


def test_plot_draws_on_given_axes_and_thins_many_clients(data):
  from matplotlib.figure import Figure

  ax = Figure().subplots()
  assert describe.plot_label_distribution(data, ax=ax, max_clients=2) is ax
  assert len(ax.patches) == 2 * 3
  assert "2 of 3 clients" in ax.get_xlabel()
