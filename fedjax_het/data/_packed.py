"""Packed files of our own making: looked for by name, checked by SHA-256."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data._places import ENVIRONMENT, places


def find(name: str, sha256: str, data_dir: str | os.PathLike | None) -> Path:
  """The file of this name, in `data_dir` or $FEDJAX_HET_DATA, or itself.

  Args:
    name: the file's name.
    sha256: the hexadecimal digest of its content.
    data_dir: a folder, or the file; None looks in the default folder.

  Returns:
    Its path.

  Raises:
    UserError: it is in none of the places, or another file of this name is.
  """
  looked = places(data_dir)
  for place in looked:
    path = place if place.is_file() else place / name
    if not path.is_file():
      continue
    with path.open("rb") as stream:
      digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != sha256:
      raise UserError(
        f"{path} is not the packed {name}: its SHA-256 is {digest[:16]}..., "
        f"not {sha256[:16]}...; get it again"
      )
    return path
  where = ", ".join(map(str, looked))
  raise UserError(
    f"no {name} in {where}: this packed file is not published (docs/data.md "
    f"says what it is made from); name its folder with data_dir or "
    f"${ENVIRONMENT}"
  )


def arrays(path: Path, names: Sequence[str], what: str) -> list[np.ndarray]:
  """The named arrays of an npz file, never unpickled.

  Args:
    path: the file.
    names: of the arrays.
    what: what the file is called in an error, e.g. "JPEG file".

  Raises:
    UserError: not such a file.
  """
  try:
    with path.open("rb") as stream:
      packed = np.load(stream, allow_pickle=False)
      return [packed[name] for name in names]
  except (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    raise UserError(
      f"{path} is not the packed {what} ({error}): get it again"
    ) from error
