"""Drift: slot by slot against the story that was told, example by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import concept, drift, feature_skew, federated, sources

K, N, T = 5, 4, 6
TURNS = [feature_skew.rotation(90 * k) for k in range(4)]
SHIFTS = [concept.shift(K, k) for k in range(K)]


def base(num_clients=N, per_client=15, skewed=False):
  """Random pixels, so that each example is known by its picture alone."""
  rng = np.random.default_rng(0)
  n = num_clients * per_client
  x = rng.normal(size=(n + 2, 4, 4, 1)).astype(np.float32)  # 2 are nobody's
  y = np.arange(n + 2) % K
  held = rng.normal(size=(40, 4, 4, 1)).astype(np.float32)
  if skewed:  # client k has class k alone
    y[:n] = np.arange(n) // per_client
  data = sources.Dataset(x, y, held, np.arange(40) % K, K, "", "", "")
  parts = np.arange(n).reshape(num_clients, per_client)
  return federated.federate(data, list(parts))


def rows_of(data, client):
  """(train, test) rows of a client."""
  return [
    np.asarray(rows.index)[client, : int(rows.count[client])].tolist()
    for rows in (data.train, data.test)
  ]


def codes_of(seen, plain):
  """The (turn, shift) of each example, from its pixels and its label."""
  found = []
  for image, y, old, old_y in zip(*seen, *plain, strict=True):
    turn = next(k for k in range(4) if (np.rot90(old, k) == image).all())
    found.append((turn, (int(y) - int(old_y)) % K))
  return found


def as_numpy(examples):
  return np.asarray(examples.x), np.asarray(examples.y)


def test_views_and_concepts_follow_their_tables():
  rng = np.random.default_rng(1)
  view, which = rng.integers(0, 4, (T, N)), rng.integers(0, K, (T, N))
  data = base()
  story = drift.make(
    data, T, views=TURNS, view=view, concepts=SHIFTS, concept=which
  )
  plain = as_numpy(data.examples)
  for t in rng.permutation(T):
    now = story.at(int(t))
    codes = codes_of(as_numpy(now.examples), plain)
    for k in range(N):
      assert rows_of(now, k) == rows_of(data, k)
      for row in sum(rows_of(now, k), []):
        assert codes[row] == (view[t, k], which[t, k])
    assert codes[-2:] == [(0, 0), (0, 0)]
  np.testing.assert_array_equal(story.view, view)
  np.testing.assert_array_equal(story.concept, which)
  for t in range(T):
    for k in range(N):
      assert story.virtual[t, k] == (t > 0 and view[t, k] != view[t - 1, k])
      assert story.real[t, k] == (t > 0 and which[t, k] != which[t - 1, k])
  assert not story.label.any()
  assert story.views[:2] == ("rotation:0", "rotation:90")
  assert story.concepts == (
    "shift:0",
    "shift:1",
    "shift:2",
    "shift:3",
    "shift:4",
  )


def test_without_any_schedule_nothing_changes():
  data = base()
  story = drift.make(data, 3, heldout="plain")
  for t in range(3):
    jax.tree.map(np.testing.assert_array_equal, story.at(t), data)
  truth = story.real, story.virtual, story.label
  assert not np.any(truth)


def test_one_program_serves_all_slots():
  story = drift.make(
    base(per_client=30),
    T,
    views=TURNS,
    view=drift.recurring(T, [0, 1, 2], N),
    concepts=SHIFTS,
    concept=drift.sudden(T, [0] * N, [1, 0, 2, 0], 3),
    part=drift.redealt(T, N, [2, 4]),
    fresh=True,
  )
  traces = []

  @jax.jit
  def read(data):
    traces.append(1)
    return jnp.sum(data.examples.x[data.train.index[:, 0]])

  sums = [float(read(story.at(t))) for t in range(T)]
  assert len(traces) == 1 and len(set(sums)) > 1


def test_a_gradual_change_takes_one_example_after_the_other():
  before, after = np.zeros(N, int), np.array([1, 0, 2, 3])
  schedule = drift.gradual(T, before, after, at=[1, 1, 3, 9], width=3)
  data = base()
  story = drift.make(data, T, concepts=SHIFTS, concept=schedule)
  plain = as_numpy(data.examples)
  changed = np.array(
    [
      [shift for _, shift in codes_of(as_numpy(story.at(t).examples), plain)]
      for t in range(T)
    ]
  )[:, : 15 * N].reshape(T, N, 15)
  # 1/3, 2/3, 3/3 of 15 examples, from slot 1 and from slot 3 on
  assert [(row == 1).sum() for row in changed[:, 0]] == [0, 5, 10, 15, 15, 15]
  assert (changed[:, 1] == 0).all() and (changed[:, 3] == 0).all()
  assert [(row == 2).sum() for row in changed[:, 2]] == [0, 0, 0, 5, 10, 15]
  assert ((changed[1:] > 0) >= (changed[:-1] > 0)).all()  # none goes back
  assert story.real[:, 0].tolist() == [0, 1, 1, 1, 0, 0]
  assert story.real[:, 2].tolist() == [0, 0, 0, 1, 1, 1]
  assert not story.real[:, [1, 3]].any()
  assert story.concept[:, 0].tolist() == [0, 1, 1, 1, 1, 1]


def test_onsets_by_hand():
  sudden = drift.sudden(4, [0, 0], [1, 0], at=2)
  assert sudden.code.tolist() == [[0, 0], [0, 0], [1, 0], [1, 0]]
  assert (sudden.share == 1).all()
  assert sudden.changed.tolist() == [[0, 0], [0, 0], [1, 0], [0, 0]]
  steps = drift.incremental(5, [0, 1, 2], 2, at=[1, 3])
  assert steps.code.tolist() == [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]]
  again = drift.recurring(5, [0, 2], 2, period=2, phase=[0, 1])
  assert again.code.tolist() == [[0, 0], [0, 2], [2, 2], [2, 0], [0, 0]]


def test_label_drift_passes_whole_parts_round():
  data = base(skewed=True)
  part = drift.redealt(T, N, [2, 4], share=0.75, seed=3)
  story = drift.make(data, T, part=part)
  old = [rows_of(data, k) for k in range(N)]
  labels = np.asarray(data.examples.y)
  was = old
  for t in range(T):
    now = story.at(t)
    held = [rows_of(now, k) for k in range(N)]
    assert sorted(held) == sorted(old)  # train stays train, test stays test
    for k in range(N):
      assert set(labels[held[k][0]]) == {part.code[t, k]}
      assert story.label[t, k] == (held[k] != was[k])
    was = held
  assert story.label.sum(axis=1).tolist() == [0, 0, 3, 0, 3, 0]
  assert not story.real.any() and not story.virtual.any()


def test_the_view_stays_with_the_client_when_parts_move():
  data = base()
  part = drift.redealt(2, N, 1)
  view = np.tile(np.arange(4), (2, 1))
  story = drift.make(data, 2, views=TURNS, view=view, part=part)
  plain, now = as_numpy(data.examples), story.at(1)
  codes = codes_of(as_numpy(now.examples), plain)
  for k in range(N):
    assert rows_of(now, k) == rows_of(data, part.code[1, k])
    assert {codes[row] for row in rows_of(now, k)[0]} == {(k, 0)}


def test_fresh_rows_are_cut_without_overlap():
  data = base()  # 12 train and 3 test rows each
  story = drift.make(data, 3, fresh=True)
  for k in range(N):
    for which in (0, 1):
      pieces = [rows_of(story.at(t), k)[which] for t in range(3)]
      assert [len(piece) for piece in pieces] == [[4] * 3, [1] * 3][which]
      assert sum(pieces, []) == rows_of(data, k)[which]
  with pytest.raises(UserError, match="client 0 has 3 test rows"):
    drift.make(data, 4, fresh=True)


def test_held_out_examples_now():
  """Each as a random client has it: in proportion to the clients."""
  data = base()
  view = np.array([[0, 0, 0, 1], [2, 2, 3, 3]])
  story = drift.make(data, 2, views=TURNS, view=view, heldout="now")
  plain = as_numpy(data.heldout)
  for t, want in enumerate(([30, 10, 0, 0], [0, 0, 20, 20])):
    turns = [c[0] for c in codes_of(as_numpy(story.at(t).heldout), plain)]
    assert np.bincount(turns, minlength=4).tolist() == want


def test_held_out_examples_for_every_pair():
  data = base()
  options = {"views": TURNS[:2], "concepts": SHIFTS[:2]}
  plain = as_numpy(data.heldout)
  share = drift.make(data, 2, heldout="share", **options)
  codes = codes_of(as_numpy(share.at(0).heldout), plain)
  pairs = [(v, c) for v in range(2) for c in range(2)]
  assert sorted(codes) == [pair for pair in pairs for _ in range(10)]
  every = drift.make(data, 2, heldout="every", **options)
  for story in (share, every):
    first, second = story.at(0).heldout, story.at(1).heldout
    jax.tree.map(np.testing.assert_array_equal, first, second)
  four = (np.tile(plain[0], (4, 1, 1, 1)), np.tile(plain[1], 4))
  codes = codes_of(as_numpy(every.at(0).heldout), four)
  assert codes == [pair for pair in pairs for _ in range(40)]
  for v, c in pairs:
    alone = codes_of(as_numpy(share.heldout(v, c)), plain)
    assert set(alone) == {(v, c)}


def test_feddaa_is_told_as_in_its_paper():
  digits = sources.load("digits")
  story = drift.feddaa(digits, num_clients=60, seed=1)
  assert story.concept.shape == (6, 60)
  for t, groups in enumerate([2, 3, 4, 4, 4, 4]):
    counts = np.bincount(story.concept[t], minlength=4)
    assert counts.tolist() == [60 // groups] * groups + [0] * (4 - groups)
    assert (story.view[t] == t % 3).all()
  assert not np.array_equal(story.concept[3], story.concept[4])
  assert story.virtual[1:].all() and not story.virtual[0].any()
  again, other = (drift.feddaa(digits, seed=s) for s in (1, 2))
  np.testing.assert_array_equal(story.concept, again.concept)
  assert (story.concept != other.concept).any()
  jax.tree.map(np.testing.assert_array_equal, story.at(4), again.at(4))
  # labels under the four rules
  start, now = story.at(0), story.at(3)  # both without rotation
  np.testing.assert_array_equal(start.examples.x, now.examples.x)
  rules = [
    lambda y: y,
    lambda y: 9 - y,
    lambda y: (y + 1) % 10,
    lambda y: (y + 2) % 10,
  ]
  for k in (0, 31, 59):
    for row in rows_of(now, k)[0]:
      rule = rules[story.concept[3, k]]
      assert int(now.examples.y[row]) == rule(int(digits.train_y[row]))


def test_feddaa_with_one_kind_of_drift():
  digits = sources.load("digits")
  virtual = drift.feddaa(digits, num_clients=8, real=False)
  assert not virtual.real.any() and virtual.virtual[1:].all()
  assert np.bincount(virtual.concept[0]).tolist() == [2, 2, 2, 2]
  mild = [feature_skew.rotation(a) for a in (0, 15)]
  real = drift.feddaa(digits, num_clients=8, views=mild, virtual=False)
  assert real.real.any() and not real.virtual.any()
  assert real.views == ("rotation:0", "rotation:15")


def test_noise_depends_on_the_seed_and_the_slot_alone():
  data = base()
  views = [feature_skew.noise(1.0)]
  one, two = (drift.make(data, 2, views=views, seed=0) for _ in range(2))
  first = np.asarray(one.at(1).examples.x)
  one.at(0)
  np.testing.assert_array_equal(one.at(1).examples.x, first)
  np.testing.assert_array_equal(two.at(1).examples.x, first)
  assert (np.asarray(two.at(0).examples.x)[:60] != first[:60]).all()
  other = drift.make(data, 2, views=views, seed=1).at(1)
  assert (np.asarray(other.examples.x)[:60] != first[:60]).all()


def test_blocks_of_rounds_know_their_slot():
  story = drift.make(
    base(), 3, views=TURNS, view=drift.recurring(3, [0, 1, 2], N)
  )
  of_block = drift.by_block(story, 2)
  for block, slot in enumerate([0, 0, 1, 1, 2, 2, 2, 2]):
    np.testing.assert_array_equal(
      of_block(block).examples.x, story.at(slot).examples.x
    )
  with pytest.raises(UserError, match="must be 1 or more"):
    drift.by_block(story, 0)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda d: drift.make(d, 2, view=np.zeros((3, N), int)),
      r"\[3, 4\], .*\[2, 4\]",
    ),
    (
      lambda d: drift.make(d, 1, view=np.ones((1, N), int)),
      "names view 1, .* 0 to 0",
    ),
    (lambda d: drift.make(d, 1, part=np.zeros((1, N), int)), "permutation"),
    (lambda d: drift.make(d, 1, heldout="then"), "unknown way to treat"),
    (lambda d: drift.make(d, 1).at(1), "slots 0 to 0"),
    (lambda d: drift.table(np.zeros(3, int)), r"\[slots, clients\]"),
    (lambda d: drift.table(-np.ones((1, 3), int)), "numbers >= 0"),
    (lambda d: drift.gradual(3, [0], [1], 1, 0), "width of 1 slot or more"),
    (lambda d: drift.recurring(3, [0, 1], 2, 0), "period of 1 slot or more"),
    (lambda d: drift.redealt(3, 4, 1, share=0.2), "2 to 4 clients"),
  ],
)
def test_errors_say_what_to_do(call, message):
  with pytest.raises(UserError, match=message):
    call(base())
