"""Real text of very unequal lengths that every machine has, as bytes."""

import pathlib
import re
import sysconfig
from collections.abc import Iterator, Sequence

import numpy as np

from fedjax_het.core.errors import UserError

_BREAK = re.compile(rb"\n{3,}")


def documents(data_dir: str | None, longest: int) -> list[np.ndarray]:
  """The stretches of text files between two blank lines in a row.

  In Python's own library, which is what is read by default, these are mostly
  one class or function each; in plain text, chapters.

  Args:
    data_dir: a folder of UTF-8 text files, or None for Python's library.
    longest: documents of more bytes are left out, and those below 2.

  Returns:
    u8[n] each, in the order of the files' names.

  Raises:
    UserError: no such folder, or no such text in it.
  """
  if data_dir is None:
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    paths = [p for p in folder.rglob("*.py") if "site-packages" not in p.parts]
  else:
    folder = pathlib.Path(data_dir).expanduser()
    if not folder.is_dir():
      raise UserError(f"--data_dir: {str(folder)!r} is no folder of text files")
    paths = [path for path in folder.rglob("*") if path.is_file()]
  found = [
    np.frombuffer(piece, np.uint8)
    for path in sorted(paths)
    for piece in _pieces(path)
    if 2 <= len(piece) <= longest
  ]
  if not found:
    raise UserError(
      f"no text of 2 to {longest} bytes in {len(paths)} files of "
      f"{str(folder)!r}: name a folder of UTF-8 text with --data_dir"
    )
  return found


def _pieces(path: pathlib.Path) -> Iterator[bytes]:
  data = path.read_bytes()
  try:
    data.decode()
  except UnicodeDecodeError:
    return
  yield from _BREAK.split(data.strip())


def batches(
  found: Sequence[np.ndarray], size: int, count: int, seed: int
) -> list[list[np.ndarray]]:
  """`count` batches of `size` documents as tokens i32, drawn without return.

  Raises:
    UserError: there are too few documents.
  """
  if len(found) < size * count:
    raise UserError(
      f"{len(found)} documents are too few for {count} batches of {size}: "
      "take fewer or smaller batches, or more text"
    )
  order = np.random.default_rng(seed).permutation(len(found))
  return [
    [found[i].astype(np.int32) for i in order[k * size : (k + 1) * size]]
    for k in range(count)
  ]
