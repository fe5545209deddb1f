"""LEAF's JSON: {"users": [...], "num_samples": [...], "user_data": {...}}."""

import json
from pathlib import Path

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data import _text


def read(place: Path) -> dict[str, tuple[list, list]]:
  """user -> (x, y) of a file, or of all *.json of a folder.

  A user that stands in several files has the examples of all.

  Raises:
    UserError: no such file, or one of another form.
  """
  paths = sorted(place.glob("*.json")) if place.is_dir() else [place]
  if not paths:
    raise UserError(f"no *.json in {place}")
  users = {}
  for path in paths:
    try:
      packed = json.loads(path.read_text(encoding="utf-8"))
      for user, size in zip(
        packed["users"], packed["num_samples"], strict=True
      ):
        x, y = (packed["user_data"][user][key] for key in ("x", "y"))
        if not len(x) == len(y) == size:
          raise ValueError(
            f"user {user} has {len(x)} x, {len(y)} y, {size} said"
          )
        mine = users.setdefault(user, ([], []))
        mine[0].extend(x)
        mine[1].extend(y)
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} is not LEAF JSON: {error!r}") from error
  return users


def arrays(
  users: dict[str, tuple[list, list]], shape: tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """All users' examples: x f32[n, ...] or i32[n, L], y i64[n], user str[n].

  Strings of one length become tokens of `_text.ALPHABET`, a label that is a
  letter its token; numbers are reshaped to `shape`, if there is one.

  Raises:
    UserError: examples of different sizes, or that do not fit the shape.
  """
  x = [one for user in users.values() for one in user[0]]
  y = [one for user in users.values() for one in user[1]]
  ids = np.repeat(list(users), [len(user[1]) for user in users.values()])
  try:
    if isinstance(x[0], str):
      return (
        np.stack([_text.letters(one) for one in x]),
        np.array([int(_text.letters(one)[0]) for one in y]),
        ids,
      )
    array = np.array(x, np.float32)
    if shape is not None:
      array = array.reshape(len(x), *shape)
    labels = np.array([int(one) for one in y])
    if labels.min() < 0:
      raise ValueError(f"label {labels.min()}")
    return array, labels, ids
  except (ValueError, TypeError, IndexError) as error:
    raise UserError(
      f"LEAF examples are numbers of one shape or strings of one length, with "
      f"a class or a letter as y: {error}"
    ) from error
