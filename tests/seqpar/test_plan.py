"""Plans against exhaustive search, and against a simulator of their own."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_plans import Tiny, best_barrier, best_laminar

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import bounds, presets
from fedjax_het.seqpar import lengths as length_lists
from fedjax_het.seqpar.cost import ModelCost
from fedjax_het.seqpar.plan import PLANNERS, plan, validate
from fedjax_het.seqpar.problem import make_problem
from fedjax_het.seqpar.types import Cluster, Task

QUICK = [name for name in PLANNERS if name != "milp"]
A100 = presets.a100_cluster()
FREE = presets.gpt("7b")._replace(gathered=False)  # lets tree run


def simulate(made, cluster, model):
  """Seconds of a plan by the documented formula; checks that it can run.

  No heads are set, so all exchange is all-to-all: 16 L h bytes a token.
  """
  free = np.zeros(len(cluster.speed))  # when each device is done
  inside = {}  # the last degree that a device worked in
  done, used, at, now = set(), set(), -1, 0.0
  for task in made.tasks:
    assert task.sequences and task.degree & (task.degree - 1) == 0
    assert task.first % task.degree == 0
    block = range(task.first, task.first + task.degree)
    assert block[-1] < len(free)
    if made.barrier and task.step != at:
      now = free.max()
      at, used = task.step, set()
    assert task.step >= at
    if made.barrier:
      assert not used & set(block)
      used |= set(block)
    else:
      assert all(inside.get(i, task.degree) >= task.degree for i in block)
      inside |= dict.fromkeys(block, task.degree)
    assert not done & set(task.sequences)
    done |= set(task.sequences)
    s = np.array([made.lengths[k] for k in task.sequences], float)
    states = model.state_bytes(len(free))
    room = min(cluster.memory[i] for i in block) - states
    assert s.sum() / task.degree * model.token_bytes <= room * (1 + 1e-9)
    speed = min(cluster.speed[i] for i in block)
    work = (model.quadratic * s * s + model.linear * s).sum() / task.degree
    seconds = (work + model.fixed) / speed
    if task.degree > 1:
      sent = 4 * 2 * model.element_bytes * model.layers * model.hidden * s.sum()
      seconds += sent / task.degree / cluster.bandwidth[task.degree]
    start = now if made.barrier else max(free[i] for i in block)
    for i in block:
      free[i] = start + seconds
  assert done == set(range(len(made.lengths)))
  return free.max()


def check(made, cluster, model):
  assert made.seconds == pytest.approx(simulate(made, cluster, model), rel=1e-9)
  assert made.lower_bound <= made.split_bound <= made.seconds * (1 + 1e-9)
  assert made.gap >= -1e-9
  assert made.device_seconds.max() <= made.seconds * (1 + 1e-9)
  validate(made, cluster, model)


@pytest.mark.parametrize(
  "sizes",
  [
    pytest.param((1, 2, 3), id="to_3"),
    pytest.param((4,), id="4"),
    pytest.param((5,), id="5"),
    pytest.param((6,), id="6", marks=pytest.mark.slow),
  ],
)
def test_every_tiny_instance(sizes):
  """All multisets of four lengths, on four devices.

  3 tokens: three a device; 9: one a device; 14 and 26: two and four devices.
  """
  tiny = Tiny()
  cluster, model = tiny.cluster(), tiny.model()
  over = {"shapes": [], "tree": []}
  for lengths in itertools.chain(
    *(itertools.combinations_with_replacement((3, 9, 14, 26), n) for n in sizes)
  ):
    barrier = best_barrier(lengths, tiny)
    laminar = best_laminar(lengths, tiny)
    assert laminar <= barrier * (1 + 1e-9)
    for name in QUICK if len(lengths) < 4 else over:
      made = plan(lengths, cluster, model, name)
      best = barrier if made.barrier else laminar
      check(made, cluster, model)
      assert made.seconds >= best * (1 - 1e-9), (name, lengths)
      assert made.lower_bound <= best * (1 + 1e-9), (name, lengths)
      if name in over:
        over[name].append(made.seconds / best)
  for ratio in over.values():  # heuristics: near the optimum, not always at it
    assert np.mean(ratio) < 1.025 and max(ratio) < 1.2


@st.composite
def clusters(draw):
  nodes, size = draw(st.sampled_from([(1, 1), (1, 4), (2, 2), (4, 2), (2, 8)]))
  n = nodes * size
  some = st.lists(st.floats(0.3, 1.0), min_size=n, max_size=n)
  alike = draw(st.booleans())
  return Cluster(
    speed=np.ones(n) if alike else np.array(draw(some)),
    memory=1e6 * (np.ones(n) if alike else np.array(draw(some))),
    node_size=size,
    bandwidth={d: draw(st.floats(1e4, 1e6)) for d in (2, 4, 8, 16) if d <= n},
  )


SMALL = ModelCost(
  quadratic=1e-6,
  linear=1e-3,
  fixed=0.1,
  token_bytes=1e3,
  parameters=2e3,
  layers=2,
  hidden=8,
  zero=1,
)


def longest_that_fits(cluster, model):
  """Tokens, over every aligned block."""
  n, best = len(cluster.speed), 0
  for d in (1, *cluster.bandwidth):
    for first in range(0, n, d):
      free = min(cluster.memory[first : first + d]) - model.state_bytes(n)
      best = max(best, d * int(free / model.token_bytes))
  return best


@given(
  clusters(),
  st.lists(st.integers(1, 400), min_size=1, max_size=40),
  st.sampled_from(["static", "adaptive", "shapes", "tree", "auto"]),
)
@settings(deadline=None, max_examples=40)
def test_random_clusters(cluster, lengths, name):
  longest = longest_that_fits(cluster, SMALL)
  if max(lengths) > longest:
    with pytest.raises(UserError, match=f"longest that fits is {longest} "):
      plan(lengths, cluster, SMALL, name)
    lengths = np.minimum(lengths, longest)
  made = plan(lengths, cluster, SMALL, name)
  check(made, cluster, SMALL)
  assert plan(lengths, cluster, SMALL, name).tasks == made.tasks


@pytest.mark.parametrize("name", QUICK)
def test_one_sequence(name):
  made = plan([60_000], A100, FREE, name)
  check(made, A100, FREE)
  assert len(made.tasks) == 1
  if name in ("shapes", "tree", "adaptive"):
    assert made.seconds == pytest.approx(made.lower_bound, rel=1e-6)
    assert made.gap == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["shapes", "tree"])
def test_equal_lengths_have_a_known_optimum(name):
  """128 of 2,000 tokens on 64 devices: two each, no exchange."""
  made = plan([2_000] * 128, A100, FREE, name)
  check(made, A100, FREE)
  expected = FREE.fixed + 2 * (FREE.quadratic * 4e6 + FREE.linear * 2_000)
  assert made.seconds == pytest.approx(expected, rel=1e-9)
  assert {task.degree for task in made.tasks} == {1}


def test_published_example_of_why_degrees_should_differ():
  """100K + four of 48K tokens on 64: FlexSP's figure has 4 s against 3 s."""
  lengths = [100_000] + [48_000] * 4
  static = plan(lengths, A100, presets.gpt("7b"), "static")
  mixed = plan(lengths, A100, presets.gpt("7b"), "shapes")
  assert {task.degree for task in static.tasks} == {16}
  static = plan(lengths, A100, presets.gpt("7b"), "static", degree=32)
  assert sorted(task.degree for task in static.tasks) == [32, 32]
  assert sorted(task.degree for task in mixed.tasks) == [8, 8, 8, 8, 32]
  assert static.seconds / mixed.seconds == pytest.approx(4 / 3, rel=0.05)


@pytest.mark.parametrize("name", ["shapes", "tree", "auto"])
def test_a_thousand_devices(name):
  cluster = presets.a100_cluster(128)
  (batch,) = length_lists.batches(
    "commoncrawl_like",
    context=192,
    num_devices=64,
    batch_size=2048,
    num_batches=1,
  )
  made = plan(batch, cluster, FREE, name)
  check(made, cluster, FREE)
  assert made.num_devices == 1024 and made.gap < 0.4


def test_tree_beats_shapes_beats_one_degree():
  (batch,) = length_lists.batches(
    "github_like", context=192, num_devices=64, num_batches=1
  )
  seconds = {}
  for name in ("tree", "shapes", "greedy", "adaptive", "static"):
    made = plan(batch, A100, FREE, name, degrees=[2, 4, 8, 16, 32, 64])
    check(made, A100, FREE)
    seconds[name] = made.seconds
  assert seconds["tree"] < seconds["shapes"]
  assert seconds["shapes"] < seconds["greedy"]
  assert seconds["shapes"] < seconds["adaptive"] / 1.2
  assert seconds["adaptive"] <= seconds["static"]
  made = plan(batch, A100, FREE, "shapes", degrees=[2, 4, 8, 16, 32, 64])
  assert made.seconds / made.split_bound < 1.05
  # micro-batches of many sequences are within 1 % of their bound
  for step in range(made.num_steps):
    tasks = [t for t in made.tasks if t.step == step]
    part = batch[[k for t in tasks for k in t.sequences]]
    if len(part) >= 70:
      one = make_problem(part, A100, FREE, [2, 4, 8, 16, 32, 64])
      slowest = max(
        s
        for t, s in zip(made.tasks, made.task_seconds, strict=True)
        if t.step == step
      )
      assert slowest < 1.01 * bounds.micro_batch_bound(one)


def test_auto_is_the_best_legal_one_and_keeps_its_budget():
  lengths = [60_000, 40_000] + [3_000] * 30
  seconds = {n: plan(lengths, A100, FREE, n).seconds for n in QUICK}
  made = plan(lengths, A100, FREE)
  tried = ("adaptive", "shapes", "tree")
  assert made.planner == min(tried, key=seconds.get)
  assert made.seconds == seconds[made.planner]
  gathered = plan(lengths, A100, presets.gpt("7b"))
  assert gathered.barrier and gathered.planner == "shapes"
  least = plan(lengths, A100, FREE, budget_seconds=0.0)
  assert least.planner == "adaptive"


def test_an_infeasible_batch_names_the_sequence():
  tokens = 6449  # on each of 64 devices, see test_cost
  with pytest.raises(UserError) as caught:
    plan([500, 64 * tokens + 1, 900_000, 64 * tokens], A100, presets.gpt("7b"))
  message = str(caught.value)
  assert "sequence 2 has 900000 tokens" in message
  assert f"longest that fits is {64 * tokens}" in message
  assert "degree 64 of 64 devices" in message and "1 more" in message
  assert "\n" not in message
  made = plan([64 * tokens], A100, presets.gpt("7b"))
  assert made.tasks[0].degree == 64
  with pytest.raises(UserError, match="degree 16 holds 103184: use a larger"):
    plan([150_000], A100, FREE, "static", degree=16)


@pytest.mark.parametrize(
  "lengths, message",
  [
    ([], "at least one"),
    ([[3, 4]], "at least one"),
    ([5, 0], "positive integers, not 0"),
    ([5, -2], "positive integers, not -2"),
    ([5.5], "positive integers, not 5.5"),
    ([float("nan")], "positive integers, not nan"),
  ],
)
def test_lengths_that_are_none(lengths, message):
  with pytest.raises(UserError, match=message):
    plan(lengths, A100, FREE)


def test_user_mistakes_are_named():
  with pytest.raises(UserError, match="did you mean 'shapes'"):
    plan([5], A100, FREE, "shape")
  with pytest.raises(UserError, match="ZeRO stage below 3"):
    plan([5], A100, presets.gpt("7b"), "tree")
  with pytest.raises(UserError, match="option of planner static 'degre'"):
    plan([5], A100, FREE, "static", degre=4)
  with pytest.raises(UserError, match="did you mean 'budget_seconds'"):
    plan([5], A100, FREE, budget=4)
  with pytest.raises(UserError, match="degree 5 is not offered"):
    plan([5], A100, FREE, "static", degree=5)
  unlike = A100._replace(speed=np.linspace(0.5, 1, 64))
  for name in ("greedy", "milp"):
    with pytest.raises(UserError, match="devices that are alike"):
      plan([5], unlike, FREE, name)


def spoiled(made):
  """Plans that are wrong in one way each, and what is said about them."""
  first, second, *rest = made.tasks
  tokens = [made.lengths[list(t.sequences)].sum() for t in made.tasks]
  fullest = made.tasks[int(np.argmax(tokens))]

  def swapped(*tasks):
    return made._replace(tasks=tuple(sorted(tasks, key=lambda t: t[:2])))

  yield swapped(second, *rest), "not exactly once"
  again = second._replace(sequences=(*second.sequences, *first.sequences))
  yield swapped(first, again, *rest), "not exactly once"
  clash = second._replace(step=first.step, first=first.first)
  yield swapped(first, clash, *rest), "shares devices"
  yield swapped(first._replace(first=1), second, *rest), "no aligned block"
  yield swapped(first._replace(first=64), second, *rest), "no aligned block"
  yield swapped(first._replace(degree=3), second, *rest), "no aligned block"
  narrow = fullest._replace(degree=1)
  others = [t for t in made.tasks if t is not fullest]
  yield swapped(narrow, *others), "its group holds 6449"
  yield made._replace(seconds=made.seconds * 0.99), "predicted"
  yield made._replace(lower_bound=made.seconds * 1.01), "below lower_bound"


def test_validate_finds_what_is_wrong():
  made = plan([50_000, 30_000] + [6_000] * 60, A100, FREE, "shapes")
  validate(made, A100, FREE)
  for wrong, message in spoiled(made):
    with pytest.raises(ValueError, match=message):
      validate(wrong, A100, FREE)


def test_validate_wants_larger_blocks_first_without_barriers():
  made = plan([300, 300, 90_000], A100, FREE, "tree")
  a, b = Task(0, 0, 1, (0, 1)), Task(1, 0, 32, (2,))
  wrong = made._replace(tasks=(a, b))
  with pytest.raises(ValueError, match="after a task of fewer devices"):
    validate(wrong, A100, FREE)
  a, b = a._replace(step=1), b._replace(step=0)
  with pytest.raises(ValueError, match="predicted"):  # legal, but other seconds
    validate(made._replace(tasks=(b, a)), A100, FREE)
