"""The cost model against the published formulas, worked out by hand."""

import math

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import cost, presets
from fedjax_het.seqpar.problem import make_problem
from fedjax_het.seqpar.types import Cluster

GPT = presets.gpt("7b", 192)
A100 = presets.a100_cluster()


def alone(length, degree, model=GPT, cluster=A100):
  """Seconds of one sequence in one group, the fixed cost included."""
  problem = make_problem([length], cluster, model, [degree])
  return float(problem.seconds[0, 0] + problem.kinds.fixed[0])


def test_seconds_of_the_published_constants():
  # (5.128e-6 s^2 + 0.1839576 s) / 32 = 51,280/32 + 18,395.76/32 ms of compute,
  # 16 x 32 layers x 4096 x 100,000 / 2^20 MiB / 32 / 5.94 to exchange
  compute = (51_280 + 18_395.76) / 32
  exchange = 200_000 / 32 / 5.94
  expected = (compute + exchange + 629.3563) / 1e3
  assert alone(100_000, 32) == pytest.approx(expected, rel=1e-9)
  # one device exchanges nothing
  expected = (5.128e-6 * 4e6 + 0.1839576 * 2000 + 629.3563) / 1e3
  assert alone(2000, 1) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
  "size, context, parameters, act",
  [
    ("7b", 192, 7.11745, 4.480441895),
    ("7b", 384, 7.84987, 4.480441895),
    ("13b", 192, 13.11605, 4.220439453),
    ("30b", 384, 32.71532, 3.417381836),
  ],
)
def test_memory_of_the_published_constants(size, context, parameters, act):
  kinds = cost.kinds(A100, presets.gpt(size, context))
  tokens = math.floor((30 * 1024 - parameters * 16 * 1024 / 64) / act)
  np.testing.assert_array_equal(kinds.tokens, tokens * kinds.degree)


def test_zero_stages():
  # bytes a parameter on 4 devices: FlexSP's ratios of 16
  ratio = {0: 1, 1: 6 / 8 / 4 + 2 / 8, 2: 7 / 8 / 4 + 1 / 8, 3: 1 / 4}
  for stage, share in ratio.items():
    model = GPT._replace(zero=stage)
    assert model.state_bytes(4) == pytest.approx(16 * GPT.parameters * share)
    assert model.needs_barrier == (stage == 3)
  assert not GPT._replace(gathered=False).needs_barrier


def test_heads_limit_ulysses_and_rings_go_beyond():
  model = GPT._replace(heads=12, kv_heads=12, hidden=12 * 64, layers=2)
  assert [model.split(d) for d in (1, 2, 4, 8, 16)] == [
    (1, 1),
    (2, 1),
    (4, 1),
    (4, 2),
    (4, 4),
  ]
  # 2 passes x 2 bytes x 2 layers x 4 tensors of 768
  assert model.exchanged_bytes(4) == 2 * 2 * 2 * 4 * 768
  # a ring of 4 moves keys and values 3 times, forward once and backward twice
  ring = 3 * (2 * 2) * (2 * 768) * 3
  assert model.exchanged_bytes(16) == 2 * 2 * 2 * 4 * 768 + ring
  odd = model._replace(heads=3, kv_heads=3, hidden=3 * 64)
  assert odd.split(4) == (1, 4)
  assert odd.exchanged_bytes(4) == 3 * (2 * 2) * (2 * 192) * 3  # no all-to-all


def test_key_value_heads_are_repeated_until_they_divide():
  model = GPT._replace(heads=32, kv_heads=8, hidden=32 * 10, layers=1)
  sent = {2: 8, 8: 8, 16: 16, 32: 32}
  for degree, heads in sent.items():
    expected = 2 * 2 * (2 * 320 + 2 * 10 * heads)
    assert model.exchanged_bytes(degree) == expected
  six = GPT._replace(heads=12, kv_heads=6, hidden=120, layers=1)
  assert six.exchanged_bytes(4) == 2 * 2 * (2 * 120 + 2 * 10 * 12)


def test_causal_balance_of_a_ring():
  """Counted: blocks of queries x keys that the busiest of r devices sees."""
  model = GPT._replace(heads=1, kv_heads=1, striped=False)
  for r in (1, 2, 4, 8):
    seen = [i + 0.5 for i in range(r)]  # full blocks before it, half its own
    busiest = max(seen) / (sum(seen) / r)
    assert model.causal_factor(r) == pytest.approx(busiest)
    assert model._replace(striped=True).causal_factor(r) == 1
  slow = alone(50_000, 64, model) - alone(
    50_000, 64, model._replace(striped=True)
  )
  extra = (2 - 1 / 64 - 1) * 5.128e-9 * 50_000**2 / 64
  assert slow == pytest.approx(extra, rel=1e-6)


def test_the_slowest_device_and_the_smallest_memory_count():
  speed = np.array([1, 1, 1, 0.5])
  gib = np.array([30, 30, 20, 30])
  cluster = Cluster(speed, gib * 2**30, 4, {2: 1e11, 4: 1e11})
  model = GPT._replace(parameters=2**30)
  kinds = cost.kinds(cluster, model)
  left, right = kinds.blocks[2]
  (whole,) = kinds.blocks[4]
  assert kinds.speed[left] == 1 and kinds.speed[right] == 0.5
  states = 16 * 1024 / 4
  per_device = [math.floor((g * 1024 - states) / 4.480441895) for g in gib]
  assert kinds.tokens[left] == 2 * per_device[0]
  assert kinds.tokens[right] == 2 * per_device[2]
  assert kinds.tokens[whole] == 4 * per_device[2]
  assert kinds.fixed[right] == pytest.approx(2 * 0.6293563)
  # computing takes twice as long, exchanging does not
  problem = make_problem([1000], cluster, model, [2])
  compute = (5.128e-9 * 1e6 + 0.1839576e-3 * 1e3) / 2
  exchange = 16 * 32 * 4096 * 1000 / 2 / 1e11
  np.testing.assert_allclose(
    np.sort(problem.seconds[0]), [compute + exchange, 2 * compute + exchange]
  )


def test_link_bandwidth_is_near_what_was_measured():
  gb = 1000 * 2**20
  table = presets.link_bandwidth(8, 8, 100 * gb, 5 * gb)
  measured = {2: 119.54, 4: 104.07, 8: 96.5, 16: 10.33, 32: 5.94, 64: 4.87}
  assert set(table) == set(measured)
  for degree, value in measured.items():
    assert table[degree] / gb == pytest.approx(value, rel=0.2)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(speed=np.ones(3)), "3 speeds and 4 memories"),
    (dict(speed=np.zeros(4)), "positive"),
    (dict(bandwidth={2: 0.0}), "positive"),
    (dict(memory=np.full(4, 2.0**30)), "GiB on each of 4 devices"),
  ],
)
def test_a_cluster_that_cannot_be(change, message):
  good = Cluster(np.ones(4), np.full(4, 30 * 2.0**30), 4, {2: 1e11})
  with pytest.raises(UserError, match=message):
    cost.kinds(good._replace(**change), GPT)


def test_user_mistakes_are_named():
  with pytest.raises(UserError, match="degree 3 is not offered.*1, 2, 4"):
    cost.kinds(A100, GPT, [3])
  with pytest.raises(UserError, match="degree 128 is not offered"):
    cost.kinds(A100, GPT, [128])
  for change in (dict(fixed=-1.0), dict(quadratic=0.0, linear=0.0)):
    with pytest.raises(UserError, match="must not be negative"):
      cost.kinds(A100, GPT._replace(**change))
  with pytest.raises(UserError, match="token_bytes = 0"):
    cost.kinds(A100, GPT._replace(token_bytes=0))
  with pytest.raises(UserError, match="ZeRO stage 4"):
    cost.kinds(A100, GPT._replace(zero=4))
  with pytest.raises(UserError, match="12 heads do not divide the width 4096"):
    cost.kinds(A100, GPT._replace(heads=12))
  with pytest.raises(UserError, match="5 key/value heads do not divide 32"):
    cost.kinds(A100, GPT._replace(heads=32, kv_heads=5))
  with pytest.raises(UserError, match="did you mean '13b'"):
    presets.gpt("13B")
  with pytest.raises(UserError, match="192 and 384"):
    presets.gpt("7b", 100)
  with pytest.raises(UserError, match="2 and 4 links"):
    presets.a100_cluster(links=3)
  with pytest.raises(UserError, match="nodes = 3"):
    presets.cluster(3, 8, 1e9, {})
  with pytest.raises(UserError, match=r"memory has shape \(3,\)"):
    presets.cluster(2, 8, np.ones(3), {})
