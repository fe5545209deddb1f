"""CIFAR-10's official "python version" batches, read without running them.

A batch is a pickled dict (protocol 2, written by Python 2) of data
u8[10000, 3072], channels first, and labels, a list of ints.  Unpickling calls
whatever the file names, so the unpickler here knows only a few names and maps
even those to inert stand-ins that keep their arguments: no object of NumPy is
built by the file.  Anything else is refused.
"""

import pickle
import re
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedjax_het.core.errors import UserError

TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"


class _Dtype:
  """Stands for numpy.dtype."""

  def __init__(self, code, *_):
    self.code, self.order = code, "|"

  def __setstate__(self, state):
    self.order = state[1]

  def real(self) -> np.dtype:
    code, order = (
      text.decode("ascii") if isinstance(text, bytes) else text
      for text in (self.code, self.order)
    )
    if not re.fullmatch(r"[iu][1248]", code) or order not in ("<", ">", "|"):
      raise ValueError(f"array of type {order}{code}")
    return np.dtype(order + code)


class _Array:
  """Stands for numpy.ndarray and for what rebuilds one."""

  def __init__(self, *_):
    self.parts: tuple = ()

  def __setstate__(self, state):
    _, shape, dtype, fortran, raw = state
    self.parts = (raw, dtype, shape, "F" if fortran else "C")

  def real(self) -> np.ndarray:
    raw, dtype, shape, order = self.parts
    if isinstance(raw, str):
      raw = raw.encode("latin-1")
    return np.frombuffer(raw, dtype.real()).reshape(shape, order=order)


def _from_buffer(raw, dtype, shape, order):
  array = _Array()
  array.parts = (raw, dtype, shape, order)
  return array


def _encode(text, codec):
  # Python 3 writes bytes this way in protocol 2.
  if codec not in ("latin1", "latin-1"):
    raise pickle.UnpicklingError(f"text in {codec!r}")
  return text.encode("latin-1")


_KNOWN = {
  ("numpy", "ndarray"): _Array,
  ("numpy", "dtype"): _Dtype,
  ("_codecs", "encode"): _encode,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
  _KNOWN[f"{_core}.multiarray", "_reconstruct"] = _Array
  _KNOWN[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Refused(pickle.UnpicklingError):
  pass


class _Unpickler(pickle.Unpickler):
  def find_class(self, module, name):
    try:
      return _KNOWN[module, name]
    except KeyError:
      raise _Refused(f"{module}.{name}") from None


def read_batch(stream: BinaryIO, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads one batch file.

  Args:
    stream: the pickle; keys may be bytes (Python 2) or str.
    name: how errors call it.

  Returns:
    x u8[n, 32, 32, 3], y i32[n].

  Raises:
    UserError: not a batch, or a pickle that wants to call something.
  """
  try:
    raw = _Unpickler(stream, encoding="bytes").load()
    batch = {
      key.decode("latin-1") if isinstance(key, bytes) else key: value
      for key, value in raw.items()
    }
    data, labels = batch["data"].real(), batch["labels"]
    labels = labels.real() if isinstance(labels, _Array) else np.array(labels)
  except _Refused as error:
    raise UserError(
      f"{name} asks to call {str(error)!r}, which a CIFAR-10 batch never does: "
      f"refused, nothing was run; get the official {ARCHIVE}"
    ) from error
  except Exception as error:  # hostile bytes can raise anything in a pickle
    raise UserError(
      f"{name} is not a CIFAR-10 batch ({type(error).__name__}: {error}): get "
      f"the official {ARCHIVE}"
    ) from error
  if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
    raise UserError(
      f"{name}: data are {data.dtype} {list(data.shape)}, expected uint8 "
      "[n, 3072]: is it CIFAR-10?"
    )
  if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu":
    raise UserError(
      f"{name}: {len(data)} images but labels {labels.dtype} "
      f"{list(labels.shape)}: get the official {ARCHIVE}"
    )
  if not len(data) or labels.min() < 0 or labels.max() > 9:
    raise UserError(
      f"{name}: no images, or labels outside 0 to 9: is it CIFAR-10?"
    )
  x = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return x, labels.astype(np.int32)


def load_folder(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads the six batches of a folder: file name -> (x, y)."""
  batches = {}
  for name in (*TRAIN, TEST):
    path = folder / name
    try:
      with path.open("rb") as stream:
        batches[name] = read_batch(stream, str(path))
    except OSError as error:
      raise UserError(
        f"cifar10: can't read {path} ({error.strerror}): get the official "
        f"{ARCHIVE}"
      ) from error
  return batches


def load_archive(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """As `load_folder`, from the archive, without unpacking it to disk."""
  batches = {}
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        name = Path(member.name).name
        if name in (*TRAIN, TEST) and member.isfile():
          stream = archive.extractfile(member)
          batches[name] = read_batch(stream, f"{path}:{member.name}")
  except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
    raise UserError(
      f"{path} is not a whole tar archive ({error}): get it again"
    ) from error
  for name in (*TRAIN, TEST):
    if name not in batches:
      raise UserError(f"cifar10: {path} has no {name}: get the official file")
  return batches
