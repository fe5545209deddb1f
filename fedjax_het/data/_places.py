"""Where data are looked for, and the error that says so."""

import os
from collections.abc import Iterable
from pathlib import Path

from fedjax_het.core.errors import UserError

ENVIRONMENT = "FEDJAX_HET_DATA"


def default_dir() -> Path:
  """Where downloads go: $FEDJAX_HET_DATA, or a folder in the user's cache."""
  chosen = os.environ.get(ENVIRONMENT)
  if chosen:
    return Path(chosen)
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "fedjax_het" / "data"


def places(data_dir: str | os.PathLike | None) -> list[Path]:
  """The files or folders to look in, in order.

  Raises:
    UserError: `data_dir` was given and does not exist.
  """
  found = [default_dir()]
  if data_dir is not None:
    given = Path(data_dir).expanduser()
    if not given.exists():
      raise UserError(
        f"data_dir {str(given)!r} does not exist: name an existing folder (or "
        "archive), or leave it out"
      )
    found.insert(0, given)
  return found


def inside(place: Path, folders: Iterable[str]) -> list[Path]:
  """`place` itself and its sub-folders of these names, the special first."""
  return [*(place / folder for folder in folders), place]


def missing(
  name: str,
  wanted: str,
  looked: Iterable[Path],
  folders: Iterable[str],
  how: str,
) -> UserError:
  """The error for a data set that is in none of the places looked in."""
  where = ", ".join(map(str, looked))
  return UserError(
    f"{name}: no {wanted} in {where} (nor in a folder {', '.join(folders)} "
    f"there): {how}, or name its folder with --data_dir or ${ENVIRONMENT}"
  )
