"""Motion of people: windows of the phone/watch and the WHARF recordings.

A recording is one take of one sensor.  Windows are cut inside a recording, so
that two recordings never share a sample.
"""

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.data._packed import arrays

PHONE_WATCH = "phone_watch_har.npz"
PHONE_WATCH_SHA256 = (
  "38b5b4f7e0f21a54fb5802cb648eba7f033cb7a5db503db8caeedbb1c6aceb18"
)
WHARF = "wharf_wrist_adl.tar.gz"
WHARF_SHA256 = (
  "8d77b583b0b600c22aaa9461970c096627ae0616e6d4d1f540b99c807ee55dcd"
)


class Recording(NamedTuple):
  """One take: signal f32[n, c] and label i64[n] of each sample.

  person: the body;  client: who holds it, e.g. a device of this person.
  kind: recordings of one kind are split in time: "" or an activity.
  """

  person: str
  client: str
  kind: str
  signal: np.ndarray
  label: np.ndarray


def phone_watch(path: Path) -> tuple[list[Recording], tuple[str, ...]]:
  """The recordings in the order of time, and the names of the classes.

  Args:
    path: npz with signal f32[n, 6] (acceleration in m/s^2 and turn rate in
      rad/s at 104 Hz), label u8[n], meta u8[n, 3] = (subject, recording, is
      watch) and label_names.

  Raises:
    UserError: not such a file.
  """
  signal, label, meta, names = arrays(
    path, ("signal", "label", "meta", "label_names"), "phone/watch file"
  )
  n = len(signal)
  if (
    not n
    or label.shape != (n,)
    or meta.shape != (n, 3)
    or label.max() >= names.size
  ):
    raise UserError(
      f"{path}: signal, label and meta don't fit together: get it again"
    )
  ends = np.flatnonzero((meta[1:] != meta[:-1]).any(axis=1)) + 1
  recordings = []
  for rows in np.split(np.arange(n), ends):
    subject, _, is_watch = meta[rows[0]]
    person = f"subject {subject:02d}"
    recordings.append(
      Recording(
        person,
        f"{person} {'watch' if is_watch else 'phone'}",
        "",
        signal[rows],
        label[rows].astype(np.int64),
      )
    )
  return recordings, tuple(name.lower() for name in names.tolist())


def wharf(path: Path) -> tuple[list[Recording], tuple[str, ...]]:
  """The recordings in the order of time, and the names of the activities.

  Args:
    path: tar of DATA/ACTIVITY/Accelerometer-TIME-activity-PERSON.txt, lines of
      three numbers 0..63 that mean -1.5 g .. 1.5 g at 32 Hz.  The folder MODELS
      holds copies of recordings, cut and aligned: it is left out.

  Raises:
    UserError: not such a file.
  """
  found = []
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        folder, _, name = member.name.rpartition("/")
        if "/MODELS" in folder or not name.startswith("Accelerometer-"):
          continue
        stem = name.removesuffix(".txt").split("-")
        codes = np.array(archive.extractfile(member).read().split(), np.float32)
        found.append((stem[1:7], stem[7], stem[8], codes.reshape(-1, 3)))
  except (tarfile.TarError, EOFError, OSError, ValueError, IndexError) as error:
    raise UserError(
      f"{path} is not the packed WHARF file ({error}): get it again"
    ) from error
  if not found:
    raise UserError(f"{path} holds no recording: get it again")
  names = tuple(sorted({activity for _, activity, _, _ in found}))
  found.sort(key=lambda take: take[:3])
  return [
    Recording(
      person,
      person,
      activity,
      codes * np.float32(3 / 63) - np.float32(1.5),
      np.full(len(codes), names.index(activity)),
    )
    for _, activity, person, codes in found
  ], names


def windows(
  recording: Recording, *, length: int, stride: int, average: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts a recording into windows.

  Args:
    recording: n samples.
    length, stride: in samples after averaging.
    average: samples that are averaged into one first.

  Returns:
    x f32[w, length, c], y i64[w], the label of most samples of a window (the
    smaller one of two as many); w is 0 if the recording is too short.
  """
  n, channels = recording.signal.shape
  m = n // average
  signal = recording.signal[: m * average]
  signal = signal.reshape(m, average, channels).mean(axis=1)
  start = np.arange(0, m - length + 1, stride)
  place = start[:, None] + np.arange(length)
  label = recording.label[: m * average].reshape(m, average)
  votes = [np.bincount(labels.ravel()).argmax() for labels in label[place]]
  return signal[place].astype(np.float32), np.array(votes, np.int64)


def split_in_time(
  recordings: Iterable[Recording], test_fraction: float
) -> list[bool]:
  """Which recordings test: the last ones of each client and kind.

  Of c recordings of one kind it is round(test_fraction * c).  A client for
  which that is none at all gives its last recording; one for which it is all,
  keeps its first.

  Returns:
    bool for each recording.
  """
  recordings = list(recordings)
  tests = [False] * len(recordings)
  clients = {}
  for i, recording in enumerate(recordings):
    kinds = clients.setdefault(recording.client, {})
    kinds.setdefault(recording.kind, []).append(i)
  for kinds in clients.values():
    mine = sorted(i for kind in kinds.values() for i in kind)
    for kind in kinds.values():
      for i in kind[len(kind) - round(test_fraction * len(kind)) :]:
        tests[i] = True
    if not any(tests[i] for i in mine):
      tests[mine[-1]] = True
    if all(tests[i] for i in mine):
      tests[mine[0]] = False
  return tests
