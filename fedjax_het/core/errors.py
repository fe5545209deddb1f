"""Errors that a user can mend: one line that says what, and what to do.

Binaries print a `UserError` as one line and exit with code 2 (see
`fedjax_het_experiments/_flags.py`); anything else is a bug and keeps its
traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """Something outside the program is wrong: a flag, a file, a data set."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UserError:
  """Builds the error for a name that is not in a list.

  Args:
    kind: what was named, e.g. "data set".
    given: the name that was not found.
    allowed: the names that exist.

  Returns:
    A `UserError` that names the nearest match first, then all the choices.

  Example:
    >>> str(unknown("net", "cn", ["cnn", "mlp"]))
    "unknown net 'cn': did you mean 'cnn'? (known: cnn, mlp)"
  """
  names = sorted(allowed)
  near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
  hint = f": did you mean {near[0]!r}?" if near else ""
  return UserError(
    f"unknown {kind} {given!r}{hint} (known: {', '.join(names)})"
  )
