"""Digits with liars among the clients: who keeps learning and who does not."""

import functools

import jax
import numpy as np
import optax
import pytest

from fedjax_het import robust
from fedjax_het.algorithms import fed_avg
from fedjax_het.core import evaluate, rounds
from fedjax_het.data import federated, partition, sources
from fedjax_het.models import mlp
from fedjax_het.selection import uniform

CLIENTS, LIARS, ROUNDS = 12, range(3), 15  # a quarter lies
SHAPE = (8, 8, 1)
NET = mlp(SHAPE, 10, hidden=(32,))
RULES = {
  "mean": None,
  "median": robust.coordinate_median(CLIENTS),
  "trimmed": robust.trimmed_mean(CLIENTS, len(LIARS)),
  "krum": robust.krum(CLIENTS, len(LIARS)),
  "multi-krum": robust.krum(CLIENTS, len(LIARS), multi=6),
  "geometric": robust.geometric_median(CLIENTS),
}


@functools.cache
def _data(spec="iid"):
  digits = sources.load("digits")
  parts = partition.parse(spec, digits.train_y, CLIENTS)
  return federated.federate(digits, parts)


@functools.cache
def _program(rule, flipped):
  """(data) -> (global parameters, accuracy) after `ROUNDS`."""
  algorithm = fed_avg(NET, optimizer=optax.sgd(0.1), batch_size=16, epochs=2)
  if RULES[rule] is not None:
    algorithm = robust.with_reducer(algorithm, RULES[rule])
  if flipped:
    algorithm = robust.byzantine(algorithm, LIARS, robust.sign_flip(4.0))
  block = rounds.make_block(
    rounds.make_round(algorithm, uniform(CLIENTS)),
    ROUNDS,
    evaluate.make_evaluate(algorithm, NET),
  )
  start = rounds.init_state(algorithm, jax.random.key(0), CLIENTS)

  @jax.jit
  def run(data):
    state, history = block(start, data)
    params = algorithm.global_params(state.server)
    return params, history["eval"]["accuracy"]

  return run


def _accuracy(rule, *, flipped, spec="iid"):
  return float(_program(rule, flipped)(_data(spec))[1])


def test_flipped_signs_stop_the_mean_and_not_the_median():
  assert _accuracy("mean", flipped=False) > 0.88
  assert _accuracy("mean", flipped=True) < 0.3
  assert _accuracy("median", flipped=True) > 0.8
  assert _accuracy("multi-krum", flipped=True) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
  "rule, least", [("trimmed", 0.8), ("krum", 0.7), ("geometric", 0.8)]
)
def test_the_other_rules_hold_too(rule, least):
  assert _accuracy(rule, flipped=True) > least


@pytest.mark.slow
def test_krum_shuts_out_honest_clients_with_other_data():
  """Nobody lies; Krum alone loses what the unlike clients know."""
  spec = "dirichlet:0.3,min_size=10"
  mean = _accuracy("mean", flipped=False, spec=spec)
  krum = _accuracy("krum", flipped=False, spec=spec)
  median = _accuracy("median", flipped=False, spec=spec)
  iid = _accuracy("mean", flipped=False) - _accuracy("krum", flipped=False)
  assert mean > 0.85
  assert mean - krum > max(0.1, iid)
  assert mean - krum > mean - median


def test_a_backdoor_opens_without_showing():
  """The trigger works, accuracy stays; flipped labels do cost accuracy."""
  data = _data()
  bright = float(np.max(data.examples.x))
  trigger = robust.pixel_patch(SHAPE, target=7, value=bright, size=2)
  run = _program("mean", False)
  clean, before = run(data)
  opened, after = run(robust.backdoor(data, LIARS, trigger, share=0.5))
  success = [
    float(robust.attack_success(NET, params, data.heldout, trigger))
    for params in (clean, opened)
  ]
  assert success[0] < 0.25 and success[1] > 0.7
  assert float(after) > float(before) - 0.05
  _, flipped = run(robust.flip_labels(data, range(6)))
  assert float(flipped) < float(before) - 0.05
