"""Data sets by name: bundled, generated, on disk, and missing."""

import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from fedjax_het.core.errors import UserError
from fedjax_het.data import _jpeg, sources

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
  monkeypatch.setenv("FEDJAX_HET_DATA", str(tmp_path / "none"))
  monkeypatch.setattr(sources, "FASHION_DEBIAN", tmp_path / "debian")
  return tmp_path


def test_digits_are_scikit_learns_split_by_class():
  from sklearn.datasets import load_digits

  bundle = load_digits()
  got = sources.load("digits")
  assert got.train_x.shape == (1437, 8, 8, 1) and got.num_classes == 10
  # Undo the normalisation: the images are the bundled ones, each once.
  train = bundle.images
  scale = np.array(
    [(x.min(), x.max()) for x in (got.train_x, got.test_x)]
  )  # 0 and 16 occur in both
  np.testing.assert_allclose(scale[0], scale[1])
  low, high = scale[0]
  back = np.concatenate([got.train_x, got.test_x])[..., 0]
  back = np.rint((back - low) / (high - low) * 16).astype(int)
  labels = np.concatenate([got.train_y, got.test_y])

  def rows(x, y):
    table = np.column_stack([y, x.reshape(len(x), -1).astype(int)])
    return table[np.lexsort(table.T)]

  np.testing.assert_array_equal(rows(back, labels), rows(train, bundle.target))
  for k in range(10):  # stratified
    share = np.mean(got.test_y == k) - np.mean(bundle.target == k)
    assert abs(share) < 1.5 / 360


def test_pixels_are_normalised_by_the_training_set_alone():
  got = sources.load("digits")
  train = got.train_x.astype(np.float64)
  assert train.mean() == pytest.approx(0, abs=1e-6)
  assert train.std() == pytest.approx(1, abs=1e-6)
  assert abs(got.test_x.astype(np.float64).mean()) > 1e-4


def test_the_digits_split_depends_on_the_seed_alone():
  first, again, other = (
    sources.load("digits", seed=seed) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first.test_x, again.test_x)
  assert not np.array_equal(first.test_y, other.test_y)


def test_synthetic_classes_can_be_told_apart_as_far_as_asked():
  def nearest_mean(separation):
    d = sources.load("synthetic", separation=separation, num_train=2000)
    means = np.stack(
      [d.train_x[d.train_y == k].mean(axis=0).ravel() for k in range(10)]
    )
    distance = ((d.test_x.reshape(200, 1, -1) - means) ** 2).sum(-1)
    return np.mean(distance.argmin(1) == d.test_y)

  assert nearest_mean(0.0) < 0.25 and nearest_mean(1.0) > 0.95


def test_synthetic_takes_sizes_and_is_seeded():
  options = dict(num_train=33, num_test=8, shape=(3, 2, 2), num_classes=4)
  first, again, other = (
    sources.load("synthetic", **options, seed=seed) for seed in (0, 0, 1)
  )
  assert first.train_x.shape == (33, 3, 2, 2) and first.num_classes == 4
  assert np.bincount(first.train_y).tolist() == [9, 8, 8, 8]
  assert first.train_x.dtype == np.float32
  np.testing.assert_array_equal(first.train_x, again.train_x)
  assert not np.array_equal(first.train_x, other.train_x)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"num_classes": 1}, "2 or more classes"),
    ({"num_test": 3}, "an example of each"),
    ({"shape": ()}, "needs a shape"),
    ({"shape": (0, 2)}, "needs a shape"),
    ({"num_trian": 3}, "did you mean 'num_train'"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(UserError, match=message):
    sources.load("synthetic", **options)


def test_an_unknown_name_suggests_the_nearest():
  with pytest.raises(UserError, match="did you mean 'fashion_mnist'"):
    sources.load("fashion-mnist")


@pytest.mark.parametrize(
  "name, wanted, how",
  [
    (
      "fashion_mnist",
      "train-images-idx3-ubyte",
      "apt install dataset-fashion-mnist",
    ),
    ("mnist", "train-images-idx3-ubyte", "fedjax_het.data.download mnist"),
    ("cifar10", "cifar-10-python.tar.gz", "fedjax_het.data.download cifar10"),
    ("cifar10_jpeg", "cifar10_jpeg_25k.npz", "use cifar10"),
  ],
)
def test_missing_data_say_what_where_and_how(nowhere, name, wanted, how):
  with pytest.raises(UserError) as caught:
    sources.load(name)
  message = str(caught.value)
  assert wanted in message and how in message and "--data_dir" in message
  assert str(nowhere / "none") in message and "\n" not in message
  if name == "fashion_mnist":
    assert str(nowhere / "debian") in message


def test_a_data_dir_that_is_not_there(nowhere):
  with pytest.raises(UserError, match="nope' does not exist"):
    sources.load("mnist", nowhere / "nope")


@pytest.mark.skipif(
  not FASHION.is_dir(),
  reason="needs Debian's package dataset-fashion-mnist",
)
def test_fashion_mnist_of_the_debian_package():
  got = sources.load("fashion_mnist", FASHION)
  assert got.train_x.shape == (60_000, 28, 28, 1)
  assert got.test_x.shape == (10_000, 28, 28, 1)
  assert np.bincount(got.train_y).tolist() == [6000] * 10
  assert np.bincount(got.test_y).tolist() == [1000] * 10
  # pixel 0 is black: mean / std of the set are known, 0.2860 / 0.3530
  assert got.train_x.min() == pytest.approx(-0.2860 / 0.3530, abs=2e-4)
  with pytest.raises(UserError, match="holds fashion_mnist, not mnist"):
    sources.load("mnist", FASHION)


# --- the packed JPEG file ---

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (120, 120, 120)]


def packed(tmp_path, size=(32, 32), kind="JPEG", labels=(0, 1, 2, 3), **change):
  blobs = []
  for label in labels:
    stream = io.BytesIO()
    Image.new("RGB", size, COLOURS[label]).save(stream, kind)
    blobs.append(stream.getvalue())
  arrays = {
    "blob": np.frombuffer(b"".join(blobs), np.uint8),
    "offsets": np.cumsum([0, *map(len, blobs)]),
    "label": np.array(labels, np.uint8),
    "is_test": np.array([0, 0, 1, 0], np.uint8),
    "classes": np.array([b"a", b"b", b"c", b"d"]),
    **change,
  }
  path = tmp_path / "cifar10_jpeg_25k.npz"
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
  return path


def test_the_first_test_jpegs_are_of_several_classes(tmp_path):
  count = 40
  packed(
    tmp_path,
    labels=np.repeat(np.arange(4), count),  # sorted by class, as the file is
    is_test=np.tile([0, 1], 2 * count).astype(np.uint8),
  )
  got = sources.load("cifar10_jpeg", tmp_path)
  assert np.bincount(got.test_y).tolist() == [count // 2] * 4
  assert len(set(got.test_y[: count // 2].tolist())) == 4
  # an image goes with its label: the colours are far apart
  each = [got.test_x[got.test_y == label] for label in range(4)]
  assert all(np.ptp(images.mean((1, 2)), axis=0).max() < 0.1 for images in each)


def test_jpegs_are_decoded(tmp_path):
  x, y, is_test = _jpeg.load_npz(packed(tmp_path))
  assert y.tolist() == [0, 1, 2, 3]
  assert is_test.tolist() == [False, False, True, False]
  for image, colour in zip(x, COLOURS, strict=True):
    assert np.abs(image.astype(int) - np.array(colour)).max() <= 6
  got = sources.load("cifar10_jpeg", tmp_path)
  assert got.train_x.shape == (3, 32, 32, 3)
  assert got.test_y.tolist() == [2]
  with pytest.raises(UserError, match="or use cifar10_jpeg: .* is there"):
    sources.load("cifar10", tmp_path)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"blob": None}, "not the packed JPEG file"),
    ({"label": np.array([{}], object)}, "not the packed JPEG file"),
    ({"label": np.arange(3, dtype=np.uint8)}, "don't fit together"),
    ({"label": np.array([0, 1, 2, 10], np.uint8)}, "don't fit together"),
    ({"offsets": np.array([0, 9, 8, 20, 30])}, "don't fit together"),
    ({"offsets": np.array([0, 1, 2, 3, 10**6])}, "don't fit together"),
    ({"is_test": np.zeros(4, np.uint8)}, "don't fit together"),
    ({"offsets": np.array([0, 10, 20, 30, 40])}, "image 0 is not a 32 x 32"),
    ({"size": (33, 32)}, "33 x 32 pixels"),
    ({"size": (16, 16)}, "16 x 16 pixels"),
    ({"kind": "PNG"}, "image 0 is not a 32 x 32 JPEG"),
  ],
)
def test_corrupt_packed_files_are_named(tmp_path, change, message):
  with pytest.raises(UserError, match=message) as caught:
    _jpeg.load_npz(packed(tmp_path, **change))
  assert "cifar10_jpeg_25k.npz" in str(caught.value)


def test_a_file_that_is_no_npz(tmp_path):
  path = packed(tmp_path)
  for data in (b"", b"nonsense", path.read_bytes()[:500]):
    path.write_bytes(data)
    with pytest.raises(UserError, match="not the packed JPEG file"):
      sources.load("cifar10_jpeg", path)


@pytest.mark.slow
def test_the_real_packed_file():
  folder = os.environ.get("FEDJAX_HET_DATA")
  if not folder or not (pathlib.Path(folder) / _jpeg.FILE).is_file():
    pytest.skip(f"needs FEDJAX_HET_DATA, a folder with {_jpeg.FILE}")
  got = sources.load("cifar10_jpeg")
  assert np.bincount(got.train_y).tolist() == [2000] * 10
  assert np.bincount(got.test_y).tolist() == [500] * 10
