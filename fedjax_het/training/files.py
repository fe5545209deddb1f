"""Files that are whole or absent, and storage errors that a user can mend."""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fedjax_het.core.errors import UserError

_REASONS = {
  errno.ENOSPC: "no space left on the device",
  errno.EDQUOT: "disk quota exceeded",
  errno.EROFS: "read-only file system",
  errno.EACCES: "permission denied",
  errno.EPERM: "operation not permitted",
  errno.ENOTDIR: "a part of the path is a file",
}


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
  """Turns a full disk and its kin into a `UserError` about `path`.

  Libraries hand such errors on in many coats (orbax: a ValueError of
  tensorstore without an errno), so the whole chain is searched, by number and
  by text.

  Args:
    path: what was being written.

  Raises:
    UserError: for a full disk, a quota, a missing permission; any other
      exception passes through.
  """
  try:
    yield
  except Exception as error:
    reason = _reason(error)
    if reason is None or isinstance(error, UserError):
      raise
    raise UserError(
      f"cannot write {str(path)!r}: {reason}; what was complete is kept: mend "
      "it and run again with --resume, or choose another --workdir"
    ) from error


def write_bytes_atomic(path: str | os.PathLike, data: bytes) -> None:
  """Writes `data` so that a reader sees the old file or the new, never a part.

  Args:
    path: the file; its folder must exist.
    data: the whole content.

  Raises:
    UserError: if the disk is full or not writable; nothing is left behind.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
  with storage_errors(path):
    try:
      with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)


def write_text_atomic(path: str | os.PathLike, text: str) -> None:
  """Writes `text` as UTF-8 (`write_bytes_atomic`)."""
  write_bytes_atomic(path, text.encode())


def write_json_atomic(path: str | os.PathLike, value: Any) -> None:
  """Writes `value` as indented JSON with sorted keys (`write_text_atomic`)."""
  write_text_atomic(
    path, json.dumps(plain(value), indent=2, sort_keys=True) + "\n"
  )


def plain(value: Any) -> Any:
  """`value` as JSON gives it back: tuples as lists, NumPy and paths as plain.

  Args:
    value: dicts, sequences, strings, numbers, NumPy scalars or arrays, paths.

  Returns:
    Dicts with string keys, lists, str, int, float, bool, None.

  Raises:
    TypeError: for anything else.
  """
  return json.loads(json.dumps(value, default=_plain_leaf))


def _plain_leaf(value: Any) -> Any:
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if isinstance(value, np.generic | np.ndarray):
    return value.tolist()
  raise TypeError(f"cannot write {type(value).__name__} as JSON: {value!r}")


def _reason(error: BaseException | None) -> str | None:
  """Why the storage refused, from the error or from what caused it."""
  seen = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    for number, reason in _REASONS.items():
      if isinstance(error, OSError):
        if error.errno == number:
          return reason
      elif os.strerror(number) in str(error):
        return reason
    error = error.__cause__ or error.__context__
  return None
