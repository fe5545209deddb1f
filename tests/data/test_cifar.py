"""CIFAR-10 batches: read in every dialect, and never run."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.core.errors import UserError
from fedjax_het.data import _cifar, sources

N = 6
DATA = np.random.default_rng(0).integers(0, 256, (N, 3072), np.uint8)
LABELS = [3, 0, 9, 1, 1, 7]
NAMES = [*_cifar.TRAIN, _cifar.TEST]


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path, monkeypatch):
  monkeypatch.setenv("FEDJAX_HET_DATA", str(tmp_path / "none"))


def batch(kind=bytes, data=DATA, labels=LABELS):
  def text(word):
    return word.encode() if kind is bytes else word

  return {
    text("batch_label"): text("training batch 1 of 5"),
    text("labels"): labels,
    text("data"): data,
    text("filenames"): [text(f"leptodactylus_{i}.png") for i in range(N)],
  }


def python2(data, labels):
  """The bytes that Python 2's pickle protocol 2 wrote, by hand."""

  def text(word):
    return b"U" + bytes([len(word)]) + word

  rows, columns = data.shape
  array = (
    b"cnumpy.core.multiarray\n_reconstruct\n"
    b"cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    b"(K\x01K" + bytes([rows]) + b"M" + struct.pack("<H", columns) + b"\x86"
    b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    b"\x89T" + struct.pack("<I", data.size) + data.tobytes() + b"tb"
  )
  numbers = b"](" + b"".join(b"K" + bytes([k]) for k in labels) + b"e"
  return (
    b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."
  )


def images(data):
  """[n, 3072] channels first -> [n, 32, 32, 3], pixel by pixel."""
  out = np.zeros((len(data), 32, 32, 3), np.uint8)
  for row in range(32):
    for column in range(32):
      for channel in range(3):
        out[:, row, column, channel] = data[
          :, channel * 1024 + row * 32 + column
        ]
  return out


def read(payload):
  return _cifar.read_batch(io.BytesIO(payload), "data_batch_1")


@pytest.mark.parametrize("kind", [bytes, str])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_batches_written_by_python_3(kind, protocol):
  x, y = read(pickle.dumps(batch(kind), protocol=protocol))
  np.testing.assert_array_equal(x, images(DATA))
  assert x.dtype == np.uint8 and y.dtype == np.int32 and y.tolist() == LABELS


def test_a_batch_as_python_2_wrote_it():
  payload = python2(DATA, LABELS)
  # the handmade bytes are a real pickle of what they should be
  real = pickle.loads(payload, encoding="bytes")
  np.testing.assert_array_equal(real[b"data"], DATA)
  x, y = read(payload)
  np.testing.assert_array_equal(x, images(DATA))
  assert y.tolist() == LABELS


def test_old_names_of_numpy_fortran_order_and_array_labels():
  payload = pickle.dumps(
    batch(data=np.asfortranarray(DATA), labels=np.array(LABELS, ">i4")),
    protocol=2,
  ).replace(b"numpy._core.", b"numpy.core.")
  x, y = read(payload)
  np.testing.assert_array_equal(x, images(DATA))
  assert y.tolist() == LABELS


class Call:
  def __init__(self, function, *arguments):
    self.call = (function, arguments)

  def __reduce__(self):
    return self.call


def shell(path):
  import os

  return Call(os.system, f"touch {path}")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
  "where", ["whole", "value", "key", "in the labels", "after"]
)
def test_a_malicious_pickle_is_refused_and_nothing_runs(
  tmp_path, protocol, where
):
  trace = tmp_path / "was_here"
  bomb = shell(trace)
  payload = {
    "whole": bomb,
    "value": {**batch(), b"extra": bomb},
    "key": {**batch(), bomb: 1},
    "in the labels": batch(labels=[*LABELS[:-1], bomb]),
    "after": [batch(), bomb],
  }[where]
  with pytest.raises(UserError, match=r"system'.*refused") as caught:
    read(pickle.dumps(payload, protocol=protocol))
  assert "data_batch_1" in str(caught.value) and "\n" not in str(caught.value)
  assert not trace.exists()


@pytest.mark.parametrize(
  "payload",
  [
    b"cos\nsystem\n(S'true'\ntR.",  # protocol 0
    b"(S'true'\nios\nsystem\n.",  # the INST opcode
    b"(cos\nsystem\nS'true'\no.",  # the OBJ opcode
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"cnumpy\nload\n.",
    b"cnumpy\nndarray.__reduce__\n.",
    b"\x80\x04\x8c\x05numpy\x8c\x11dtype.__new__.__x\x93.",
    b"c_codecs\ndecode\n.",
    b"ccopyreg\n_reconstructor\n.",
  ],
)
def test_other_ways_to_name_a_function_are_refused(payload):
  with pytest.raises(UserError, match="refused"):
    read(payload)


def test_only_stand_ins_are_built():
  """What the file may name are our own inert objects, none of NumPy's."""
  assert {type(v).__module__ for v in _cifar._KNOWN.values()} <= {"builtins"}
  assert {v.__module__ for v in _cifar._KNOWN.values()} == {_cifar.__name__}


@pytest.mark.parametrize(
  "payload, message",
  [
    (b"", "is not a CIFAR-10 batch"),
    (b"garbage", "is not a CIFAR-10 batch"),
    (pickle.dumps([1, 2]), "is not a CIFAR-10 batch"),
    (pickle.dumps({b"labels": [1]}), "is not a CIFAR-10 batch"),
    (pickle.dumps({b"data": 3, b"labels": [1]}), "is not a CIFAR-10 batch"),
    (pickle.dumps(batch())[:-200], "is not a CIFAR-10 batch"),
    (pickle.dumps(batch(data=DATA.astype("O"))), "is not a CIFAR-10 batch"),
    (pickle.dumps(batch(data=DATA.astype("f4"))), "is not a CIFAR-10 batch"),
    (pickle.dumps(batch(data=DATA.astype("i4"))), r"int32 \[6, 3072\]"),
    (pickle.dumps(batch(data=DATA[:, :100])), r"uint8 \[6, 100\]"),
    (pickle.dumps(batch(data=DATA[:0], labels=[])), "labels|no images"),
    (pickle.dumps(batch(labels=LABELS[:-1])), "6 images but labels"),
    (pickle.dumps(batch(labels=[0.5] * N)), "6 images but labels"),
    (pickle.dumps(batch(labels=[10] * N)), "labels outside 0 to 9"),
    (pickle.dumps(batch(labels=[[1], [1, 2]])), "not a CIFAR-10 batch"),
  ],
)
def test_what_is_no_batch_is_named(payload, message):
  with pytest.raises(UserError, match=message) as caught:
    read(payload)
  assert "data_batch_1" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(
  place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans()
)
def test_damage_gives_a_batch_or_a_user_error(place, value, cut):
  payload = bytearray(python2(DATA[:1], LABELS[:1]))
  place %= len(payload)
  payload = payload[:place] if cut else payload
  if not cut:
    payload[place] = value
  try:
    read(bytes(payload))
  except UserError:
    pass


def write(folder):
  folder.mkdir(parents=True)
  for i, name in enumerate(NAMES):
    data = np.roll(DATA, i, axis=0)
    (folder / name).write_bytes(python2(data, np.roll(LABELS, i)))
  return folder


def assert_loaded(dataset):
  assert dataset.train_x.shape == (5 * N, 32, 32, 3)
  assert dataset.test_x.shape == (N, 32, 32, 3)
  expected = [int(k) for i in range(5) for k in np.roll(LABELS, i)]
  assert dataset.train_y.tolist() == expected
  pixels = images(DATA).astype(float)  # each training batch has these pixels
  mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
  np.testing.assert_allclose(
    dataset.train_x[:N], (pixels - mean) / std, atol=1e-4
  )


@pytest.mark.parametrize(
  "below", [".", "cifar10", "cifar10/cifar-10-batches-py"]
)
def test_a_folder(tmp_path, below):
  write(tmp_path / "root" / below)
  assert_loaded(sources.load("cifar10", tmp_path / "root"))


def test_the_archive(tmp_path):
  folder = write(tmp_path / "cifar-10-batches-py")
  path = tmp_path / "out" / "cifar-10-python.tar.gz"
  path.parent.mkdir()
  with tarfile.open(path, "w:gz") as archive:
    archive.add(folder, arcname=folder.name)
  assert_loaded(sources.load("cifar10", path))
  assert_loaded(sources.load("cifar10", path.parent))
  assert [p.name for p in path.parent.iterdir()] == [path.name]  # not unpacked


def test_a_missing_batch_is_named(tmp_path):
  folder = write(tmp_path / "cifar-10-batches-py")
  (folder / "data_batch_4").unlink()
  with pytest.raises(UserError, match="data_batch_4"):
    sources.load("cifar10", folder)
  path = tmp_path / "c.tar.gz"
  with tarfile.open(path, "w:gz") as archive:
    archive.add(folder, arcname=folder.name)
  with pytest.raises(UserError, match="data_batch_4"):
    sources.load("cifar10", path)
  path.write_bytes(path.read_bytes()[:300])
  with pytest.raises(UserError, match=r"c\.tar\.gz"):
    sources.load("cifar10", path)
