"""Packing against rows written by hand, and documents found again."""

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import pack
from fedjax_het.seqpar.types import Plan, Task

LENGTHS = 5, 3, 2, 1, 9, 4


def documents():
  """Token 10 d + p at position p of document d."""
  return [10 * d + np.arange(n) for d, n in enumerate(LENGTHS)]


def plan(*tasks, lengths=LENGTHS, num_devices=4):
  none = np.zeros(0)
  return Plan(
    lengths=np.asarray(lengths),
    num_devices=num_devices,
    tasks=tuple(Task(*task) for task in tasks),
    barrier=False,
    seconds=0.0,
    task_seconds=none,
    device_seconds=none,
    device_memory=none,
    lower_bound=0.0,
    split_bound=0.0,
    planner="hand",
    solve_seconds=0.0,
  )


LAMINAR = plan(
  (0, 0, 4, (4, 1)), (1, 0, 2, (0,)), (1, 2, 1, (2,)), (2, 2, 1, (3,)),
  (1, 3, 1, (5,)),
)  # fmt: skip


def test_a_row_by_hand():
  row = pack.pack_row([np.array([7, 8, 9]), np.array([5, 6])], 7)
  assert row.token.tolist() == [7, 8, 9, 5, 6, 0, 0]
  assert row.target.tolist() == [8, 9, 0, 6, 0, 0, 0]
  assert row.segment.tolist() == [1, 1, 1, 2, 2, 0, 0]
  assert row.position.tolist() == [0, 1, 2, 0, 1, 0, 0]
  assert row.weight.tolist() == [1, 1, 0, 1, 0, 0, 0]
  assert [part.dtype for part in row] == [np.int32] * 4 + [np.float32]
  weights = [np.array([9, 0, 0.5]), np.array([9, 1])]
  row = pack.pack_row([np.array([7, 8, 9]), np.array([5, 6])], 5, weights)
  assert row.weight.tolist() == [0, 0.5, 0, 1, 0]


def test_a_ring_is_dealt_out():
  assert pack.lay_out(8, 1).tolist() == list(range(8))
  assert pack.lay_out(8, 2).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
  assert pack.lay_out(12, 4).tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def test_groups_by_hand():
  groups, _, weight = pack.pack_groups(
    LAMINAR, documents(), ladder=(2, 4), limit=2
  )
  assert weight == sum(LENGTHS) - len(LENGTHS)
  assert [(group.first, group.degree) for group in groups] == [
    (0, 4), (0, 2), (2, 1), (3, 1), (2, 1),
  ]  # fmt: skip
  # 12 tokens, 3 a device: a ring of 2 Ulysses pairs holds every second token
  row = [40, 41, 42, 43, 44, 45, 46, 47, 48, 10, 11, 12]
  pairs = row[::2], row[1::2]
  want = [
    *pairs[0][:3],
    0,
    *pairs[0][3:],
    0,
    *pairs[1][:3],
    0,
    *pairs[1][3:],
    0,
  ]
  assert groups[0].tokens.token.tolist() == want
  assert groups[1].tokens.token.tolist() == [0, 1, 2, 0, 3, 4, 0, 0]
  assert groups[2].tokens.token.tolist() == [20, 21]  # the smaller rung


def test_rounds_by_hand():
  batch = pack.pack_rounds(LAMINAR, documents(), capacity=4, limit=4)
  assert batch.level.tolist() == [
    [2, 2, 2, 2], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0],
  ]  # fmt: skip
  assert batch.held.tolist() == [
    [3, 3, 3, 3], [3, 3, 2, 4], [0, 0, 1, 0], [0, 0, 0, 0],
  ]  # fmt: skip
  token = batch.tokens.token.reshape(4, 4, 4)
  assert token[0].tolist() == [
    [40, 41, 42, 0], [43, 44, 45, 0], [46, 47, 48, 0], [10, 11, 12, 0],
  ]  # fmt: skip
  assert token[1].tolist() == [
    [0, 1, 2, 0], [3, 4, 0, 0], [20, 21, 0, 0], [50, 51, 52, 53],
  ]  # fmt: skip
  assert token[2, 2, 0] == 30 and batch.tokens.segment[2].sum() == 1
  assert not batch.tokens.segment[3].any()
  assert batch.weight == sum(LENGTHS) - len(LENGTHS)


def test_devices_that_idle_in_a_barrier_plan_move_up():
  """Nobody needs the parameters of a step: device 2 starts at once."""
  steps = plan(
    (0, 0, 2, (0,)), (1, 2, 1, (1,)), (1, 0, 2, (2, 3)), (2, 0, 4, (4,)),
    (3, 3, 1, (5,)),
  )  # fmt: skip
  batch = pack.pack_rounds(steps, documents(), capacity=5, limit=4)
  assert (batch.held > 0).tolist() == [
    [True, True, True, False],
    [True, True, False, False],
    [True, True, True, True],
    [False, False, False, True],
  ]


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_every_document_is_found_again(limit):
  rng = np.random.default_rng(limit)
  lengths = rng.integers(1, 60, 40)
  texts = [rng.integers(0, 256, n) for n in lengths]
  tasks, left = [], list(rng.permutation(40))
  for step in range(5):
    degree = int(rng.choice([1, 2, 4]))
    for first in range(0, 4, degree):
      size = 2 if len(left) > 2 else len(left)
      tasks.append((step, first, degree, tuple(left[:size])))
      left = left[size:]
  tasks = [task for task in tasks if task[3]]
  tasks += [(9 + i, 0, 4, (j,)) for i, j in enumerate(left)]
  made = plan(*tasks, lengths=lengths)
  rounds = pack.pack_rounds(made, texts, capacity=120, limit=limit)
  rows = [
    pack.Tokens(
      *(
        part[r].reshape(4, -1)[first : first + degree] for part in rounds.tokens
      )
    )
    for r in range(len(rounds.held))
    for first in range(4)
    if rounds.held[r, first]
    for degree in [1 << rounds.level[r, first]]
    if first % degree == 0
  ]
  groups = pack.pack_groups(made, texts, ladder=(30, 120), limit=limit)
  for found in (rows, [group.tokens for group in groups.groups]):
    again = []
    for row in found:
      flat = [np.asarray(part).reshape(-1) for part in row]
      for segment in range(1, flat[2].max() + 1):
        here = np.flatnonzero(flat[2] == segment)
        here = here[np.argsort(flat[3][here])]
        assert flat[3][here].tolist() == list(range(len(here)))
        token, weight = flat[0][here], flat[4][here]
        np.testing.assert_array_equal(flat[1][here][:-1], token[1:])
        assert weight[:-1].all() and weight[-1] == 0
        again.append(token.tolist())
      assert not flat[4][flat[2] == 0].any()
    assert sorted(again) == sorted(text.tolist() for text in texts)
  assert rounds.weight == groups.weight == lengths.sum() - 40


def test_mistakes():
  options = {"limit": 2, "capacity": 2}
  with pytest.raises(UserError, match="12 tokens on 4 devices takes 3"):
    pack.pack_rounds(LAMINAR, documents(), **options)
  with pytest.raises(UserError, match="which can hold 2"):
    pack.pack_groups(LAMINAR, documents(), ladder=(1, 2), limit=2)
  with pytest.raises(UserError, match="takes 3 rounds, 2 were"):
    pack.pack_rounds(LAMINAR, documents(), limit=2, capacity=4, rounds=2)
  six = plan((0, 0, 4, (0,)), lengths=(5,), num_devices=6)
  with pytest.raises(UserError, match="halves of 6 devices"):
    pack.pack_rounds(six, [np.arange(5)], limit=4, capacity=4)
  single = plan((0, 0, 1, (0,)), lengths=(1,))
  with pytest.raises(UserError, match="nothing to learn"):
    pack.pack_rounds(single, [np.arange(1)], limit=4, capacity=4)
  with pytest.raises(UserError, match="nothing to learn"):
    pack.pack_groups(single, [np.arange(1)], limit=4, ladder=(4,))
  with pytest.raises(ValueError, match="other lengths"):
    pack.pack_rounds(LAMINAR, documents()[::-1], **options)
  with pytest.raises(ValueError, match="as long as"):
    pack.pack_rounds(
      LAMINAR, documents(), limit=2, capacity=4, weights=documents()[::-1]
    )
  with pytest.raises(ValueError, match="5 tokens do not fit a row of 4"):
    pack.pack_row([np.arange(5)], 4)
  with pytest.raises(UserError, match="ladder of 0"):
    pack.make_ladder(100, 0)


def test_ladder():
  assert pack.make_ladder(1000) == (250, 500, 1000)
  assert pack.make_ladder(7, 3) == (2, 4, 7)
  assert pack.make_ladder(1, 3) == (1,)
