"""Streams: nothing is lost, nothing overlaps, time goes forward."""

import jax
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import _packed, _places, streams

N, T = 4, 5


def toy(n=4 * 5 * 10 + 7):
  """The first feature is the time; the second does not vary at all."""
  x = np.stack([np.arange(n), np.full(n, 3.0)], axis=1)
  return streams.Stream(x, np.arange(n) % 2, "toy")


def times(story, stream):
  """Per slot: the moments of each client's train, test and held-out rows."""
  found = []
  for t in range(T):
    data = story.at(t)
    scale = np.asarray(data.examples.x)[:, 0]  # normalised moments
    held = np.searchsorted(scale, np.asarray(data.heldout.x)[:, 0])
    rows = [np.asarray(part.index) for part in (data.train, data.test)]
    assert [int(part.count.min()) for part in (data.train, data.test)] == [7, 2]
    np.testing.assert_array_equal(np.asarray(data.heldout.y), stream.y[held])
    found.append((*rows, held.reshape(N, 1)))
  return found


@pytest.mark.parametrize("how", streams.DEALS)
def test_each_cell_is_cut_in_time_and_no_row_is_used_twice(how):
  stream = toy()
  story = streams.deal(stream, num_clients=N, num_slots=T, how=how)
  used = []
  for t, parts in enumerate(times(story, stream)):
    for k in range(N):
      train, test, held = (part[k] for part in parts)
      assert train.max() < test.min() and test.max() < held.min()
      used += [*train, *test, *held]
      cell = np.concatenate([train, test, held])
      if how == "mixed":  # the t-th of five spans of 41
        assert cell.min() >= 41 * t and cell.max() < 41 * (t + 1)
      else:  # the client's t-th ten of its 51
        assert cell.tolist() == [*range(51 * k + 10 * t, 51 * k + 10 * t + 10)]
  assert len(used) == len(set(used)) == 4 * 5 * 10


def test_normalised_by_what_is_known_at_first():
  story = streams.deal(toy(), num_clients=N, num_slots=T)
  data = story.at(0)
  first = np.asarray(data.examples.x)[np.asarray(data.train.index).ravel()]
  np.testing.assert_allclose(first[:, 0].mean(), 0, atol=1e-6)
  np.testing.assert_allclose(first[:, 0].std(), 1, rtol=1e-6)
  assert (first[:, 1] == 0).all()


def test_slots_have_one_shape_and_nobody_knows_the_truth():
  story = streams.deal(toy(), num_clients=N, num_slots=T)
  shapes = [
    jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), story.at(t))
    for t in range(T)
  ]
  assert all(shape == shapes[0] for shape in shapes)
  assert story.real is story.concept is story.virtual is None
  with pytest.raises(UserError, match="nobody knows"):
    story.heldout(0, 0)
  with pytest.raises(UserError, match="slots 0 to 4"):
    story.at(5)


def test_a_csv_file_is_read(tmp_path):
  path = tmp_path / "table.csv"
  path.write_text("a,b,class\n0.5,1,0\n2,3,1\n")
  stream = streams.read_csv(path, "table")
  assert stream.x.tolist() == [[0.5, 1], [2, 3]] and stream.y.tolist() == [0, 1]
  for text, message in (
    ("a,class\nx,0\n", "not a table of numbers"),
    ("a,class\n1,0.5\n", "labels"),
    ("a,class\nnan,0\n", "finite"),
  ):
    path.write_text(text)
    with pytest.raises(UserError, match=message):
      streams.read_csv(path, "table")


def test_errors_say_what_to_do(tmp_path, monkeypatch):
  with pytest.raises(UserError, match="did you mean 'elec2'"):
    streams.load("elec")
  with pytest.raises(UserError, match="did you mean 'mixed'"):
    streams.deal(toy(), num_clients=2, num_slots=2, how="mix")
  with pytest.raises(UserError, match="2 each, which leaves 0"):
    streams.deal(toy(), num_clients=10, num_slots=10)
  monkeypatch.setenv(_places.ENVIRONMENT, str(tmp_path))
  with pytest.raises(UserError, match="no drift_streams.tar.gz in"):
    streams.load("elec2")
  (tmp_path / streams.FILE).write_bytes(b"something else")
  with pytest.raises(UserError, match="SHA-256 is .* get it again"):
    streams.load("elec2")
  with pytest.raises(UserError, match="does not exist"):
    streams.load("elec2", tmp_path / "nowhere")


def packed_file(name, sha256):
  """The real file, or a skip where there is none."""
  try:
    return _packed.find(name, sha256, None)
  except UserError as error:
    pytest.skip(str(error))


def test_the_real_streams_drift_or_not():
  packed_file(streams.FILE, streams.SHA256)
  shapes = {"elec2": (45312, 6), "noaa": (18159, 8), "sea": (40000, 3)}
  for name, shape in shapes.items():
    stream = streams.load(name)
    assert stream.x.shape == shape and set(stream.y.tolist()) == {0, 1}
    story = streams.deal(stream, num_clients=10, num_slots=6)
    assert story.at(5).train.index.shape[0] == 10
    if name == "sea":
      # one rule all the time, and a tenth of noise
      fits = (stream.x[:, :2].sum(axis=1) > 9) == stream.y
      assert (np.abs(fits.reshape(8, 5000).mean(axis=1) - 0.9) < 0.02).all()
