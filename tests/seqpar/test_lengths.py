"""Lengths: files, mixtures, padding."""

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import lengths


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("FEDJAX_HET_DATA", str(tmp_path))
  return tmp_path


def test_padding_rounds_up_and_drops():
  given = np.array([1, 127, 128, 129, 191_872, 191_873])
  found = lengths.padded(given, 128, 192_000 - 128)
  np.testing.assert_array_equal(found, [128, 128, 128, 256, 191_872])


def test_real_lengths_are_read_in_order(folder):
  np.savez(folder / "wikipedia_lengths.npz", lengths=np.arange(1, 41))
  found = lengths.batches(
    "wikipedia", context=192, num_devices=4, batch_size=8, num_batches=2
  )
  expected = -(-np.arange(1, 17) // 8) * 8
  np.testing.assert_array_equal(found.ravel(), expected)
  other = lengths.batches(
    "wikipedia", context=192, num_devices=4, batch_size=8, num_batches=2, seed=1
  )
  np.testing.assert_array_equal(other.ravel(), expected + 16)
  with pytest.raises(UserError, match="40 sequences.*48 are wanted"):
    lengths.batches(
      "wikipedia", context=192, num_devices=4, batch_size=24, num_batches=2
    )


def test_missing_or_unreadable_files_are_named(folder):
  with pytest.raises(UserError, match="wikipedia_lengths.npz.*FEDJAX_HET_DATA"):
    lengths.wikipedia()
  (folder / "wikipedia_lengths.npz").write_bytes(b"no zip")
  with pytest.raises(UserError, match="cannot read lengths"):
    lengths.wikipedia()
  np.savez(folder / "wikipedia_lengths.npz", other=np.ones(3))
  with pytest.raises(UserError, match="cannot read lengths"):
    lengths.wikipedia()


@pytest.mark.parametrize(
  "name, median, sigma, start, exponent, share",
  [
    ("github_like", 900, 1.4, 16_384, 0.95, 0.042),
    ("commoncrawl_like", 1_000, 1.25, 10_240, 1.05, 0.06),
  ],
)
def test_mixtures_have_the_documented_distribution(
  name, median, sigma, start, exponent, share
):
  from scipy import stats

  drawn = lengths.mixture(name, 200_000, seed=3)
  assert drawn.dtype == np.int64 and 16 <= drawn.min()
  assert drawn.max() <= 4_000_000
  np.testing.assert_array_equal(drawn, lengths.mixture(name, 200_000, seed=3))
  for x in (100, 1_000, 5_000, 30_000, 200_000):
    body = stats.lognorm.sf(x, sigma, scale=median)
    tail = stats.pareto.sf(x, exponent, scale=start)
    expected = (1 - share) * body + share * tail
    error = 5 * (expected * (1 - expected) / drawn.size) ** 0.5
    assert abs((drawn > x).mean() - expected) < error


def test_batches_of_a_mixture():
  def draw(**options):
    return lengths.batches(
      "github_like", context=192, num_devices=64, batch_size=32, **options
    )

  found = draw(num_batches=3)
  assert found.shape == (3, 32)
  assert (found % 128 == 0).all() and found.max() <= 192_000 - 128
  np.testing.assert_array_equal(draw(num_batches=5)[:3], found)
  assert (found[0] != found[1]).any()
  assert (draw(num_batches=3, seed=1) != found).any()


def test_unknown_names():
  with pytest.raises(UserError, match="did you mean 'wikipedia'"):
    lengths.batches("wikipedias", context=192, num_devices=4)
  with pytest.raises(UserError, match="did you mean 'github_like'"):
    lengths.mixture("github", 4)
