"""Late clients: delayed rounds, corrections, and the switch back."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import tiny

from fedjax_het import privacy, robust
from fedjax_het.algorithms import (
  Search,
  corrections,
  fed_avg,
  inverted_fed_avg,
  stale_fed_avg,
)
from fedjax_het.algorithms import _stale_inversion as inverted
from fedjax_het.core import wire
from fedjax_het.core.errors import UserError

DELAYS = [0, 2, 0, 1, 3, 0, 1]
RATE, EPOCHS = 0.1, 2
SEARCH = Search(
  tiny.INPUT_SHAPE,
  tiny.CLASSES,
  box=(-4.0, 4.0),
  size=8,
  iterations=60,
  signed=False,
)


def _stale(correction=corrections.direct, delays=DELAYS, **options):
  return stale_fed_avg(
    tiny.mlp(),
    delays=delays,
    optimizer=optax.sgd(RATE),
    batch_size=federation.BATCH,
    cohort_size=tiny.CLIENTS,
    epochs=EPOCHS,
    correction=correction,
    **options,
  )


def _inverted(delays=DELAYS, **options):
  options = {"search": SEARCH, "rate": RATE, "epochs": EPOCHS} | options
  return inverted_fed_avg(
    tiny.mlp(),
    delays=delays,
    batch_size=federation.BATCH,
    cohort_size=tiny.CLIENTS,
    **options,
  )


def _fed_avg():
  return fed_avg(
    tiny.mlp(),
    optimizer=optax.sgd(RATE),
    batch_size=federation.BATCH,
    epochs=EPOCHS,
  )


def _oracle(params, data, cohorts, correct, delays=DELAYS, server_rate=1.0):
  """Delayed rounds, one client after another, in float64.

  Args:
    correct: (delta, old, now, tau), lists of arrays -> (update, share).

  Returns:
    The models of rounds 0 to R.
  """
  models = [[np.asarray(p, np.float64) for p in params]]
  for t, cohort in enumerate(cohorts):
    now, total, weight = models[t], None, 0.0
    for k in cohort:
      tau = delays[k]
      if tau > t:
        continue  # sent out before the beginning: nothing has arrived
      old = models[t - tau]
      x, y = oracles.client_arrays(data, k)
      local = [p.copy() for p in old]
      for _ in range(EPOCHS):
        _, grads = oracles.loss_and_grad(*local, x, y)
        local = [w - RATE * g for w, g in zip(local, grads, strict=True)]
      delta = [w - p for w, p in zip(local, old, strict=True)]
      update, share = correct(delta, old, now, tau)
      n = share * len(y)
      total = total or [np.zeros_like(p) for p in now]
      total = [s + n * u for s, u in zip(total, update, strict=True)]
      weight += n
    if weight:
      now = [
        p + server_rate * s / weight for p, s in zip(now, total, strict=True)
      ]
    models.append(now)
  return models


def _dc(lam):
  def correct(delta, old, now, tau):
    del tau
    moved = [
      d - lam * d * d * (n - o) for d, o, n in zip(delta, old, now, strict=True)
    ]
    return moved, 1.0

  return correct


CASES = {
  "direct": (corrections.direct, lambda d, o, n, tau: (d, 1.0)),
  "polynomial": (
    corrections.polynomial(0.7),
    lambda d, o, n, tau: ([x / (1 + tau) ** 0.7 for x in d], 1.0),
  ),
  "halving": (
    corrections.halving(1.5),
    lambda d, o, n, tau: ([x * 0.5 ** (tau / 1.5) for x in d], 1.0),
  ),
  "first_order": (corrections.first_order(3.0), _dc(3.0)),
  "dropped": (
    corrections.dropped,
    lambda d, o, n, tau: (d, 1.0 if tau == 0 else 0.0),
  ),
}
COHORTS = [[1, 2, 4, 5], [1, 3, 4, 6], [6, 2, 3, 5], [1, 3, 4, 0], [4, 1, 6, 2]]


@pytest.mark.parametrize("name", CASES)
def test_delayed_rounds_are_those_of_the_oracle(name):
  correction, correct = CASES[name]
  data = tiny.data()
  first, last, _ = federation.run(_stale(correction, server_rate=0.8), COHORTS)
  start = federation.weights(first.server.model())
  models = _oracle(start, data, COHORTS, correct, server_rate=0.8)
  for age in range(4):  # and the ring holds the last tau_max + 1 of them
    federation.assert_close(last.server.model(age), models[5 - age])
  plain = _oracle(start, data, COHORTS, CASES["direct"][1], server_rate=0.8)
  if name != "direct":  # the corrections are not too small to be seen
    assert np.abs(plain[-1][0] - models[-1][0]).max() > 1e-4


@pytest.mark.parametrize(
  "algorithm",
  [
    lambda: _stale(delays=[0] * 7),
    lambda: _stale(corrections.first_order(4.0), delays=[0] * 7),
    lambda: _stale(corrections.oracle),
    lambda: _inverted(delays=[0] * 7),
  ],
)
def test_without_staleness_it_is_fed_avg(algorithm):
  _, want, plain = federation.run(_fed_avg(), COHORTS)
  _, got, seen = federation.run(algorithm(), COHORTS)
  federation.assert_same(got.server.model(), want.server.params)
  for a, b in zip(seen, plain, strict=True):
    np.testing.assert_array_equal(a.up_bytes, b.up_bytes)
    np.testing.assert_array_equal(a.down_bytes, b.down_bytes)
    np.testing.assert_allclose(a.metrics["loss"], b.metrics["loss"], rtol=1e-6)


def test_dropped_clients_were_never_there():
  """The rounds are FedAvg's over the fresh clients alone."""
  fresh = [k for k in range(tiny.CLIENTS) if DELAYS[k] == 0]
  _, got, _ = federation.run(_stale(corrections.dropped))
  _, want, _ = federation.run(_fed_avg(), [fresh] * 3)
  federation.assert_same(got.server.model(), want.server.params)
  # a round of late clients only changes nothing, but it was a round
  first, after, _ = federation.run(_stale(corrections.dropped), [[1, 3, 4, 6]])
  federation.assert_same(after.server.model(), first.server.model())
  assert int(after.server.round) == 1


def test_what_is_sent_before_the_beginning_does_not_count():
  _, _, seen = federation.run(_stale(), [list(range(7))] * 4)
  for t, cohort in enumerate(seen):
    arrived = np.asarray(DELAYS) <= t
    np.testing.assert_array_equal(np.asarray(cohort.weight) > 0, arrived)


def test_nothing_but_the_model_travels():
  """The inversion's clients also say how many steps they did."""
  size = 4 * tiny.HIDDEN * (tiny.FEATURES + tiny.CLASSES)
  for algorithm, more in ((_stale(), 0), (_inverted(), 4)):
    _, _, (seen,) = federation.run(algorithm, [[1, 2]])
    np.testing.assert_array_equal(seen.down_bytes, [size, size])
    np.testing.assert_array_equal(seen.up_bytes, [size + more] * 2)
  state = algorithm.init(jax.random.key(0))
  assert wire.nbytes(algorithm.downlink(state, jnp.int32(1))) == size


def _always(value):
  """An inversion that says the update was `value` times what came."""

  def estimate(program, search, base, delta, now, steps, start):
    del program, search, base, now, steps
    return jax.tree.map(lambda d: value * d, delta), start, jnp.float32(0.25)

  return estimate


def test_the_switch_back(monkeypatch):
  """Client 3 is one round late; its estimates are tripled: a bad idea.

  The estimate of round 1 is judged by what arrives in round 2.
  """
  monkeypatch.setattr(inverted, "estimate", _always(3.0))
  delays = [0, 0, 0, 1, 0, 0, 0]
  everybody = [list(range(7))] * 4
  first, got, seen = federation.run(_inverted(delays), everybody)
  start = federation.weights(first.server.model())
  tripled = []

  def correct(delta, old, now, tau):
    if tau and not tripled:  # its first arrival; afterwards the raw updates
      tripled.append(True)
      return [3 * d for d in delta], 1.0
    return delta, 1.0

  want = _oracle(start, tiny.data(), everybody, correct, delays)[-1]
  federation.assert_close(got.server.model(), want)
  assert [float(s.metrics["inverted"][0]) for s in seen] == [0, 0, 1, 0]
  assert [float(s.metrics["switched"][0]) for s in seen] == [0, 0, 0, 1]
  told = seen[-1].metrics
  assert float(told["inversion_error"][0]) == 0.25
  assert float(told["e1"][0]) > 1 > float(told["e2"][0]) > 0
  # without the switch every arrival is tripled
  first, got, _ = federation.run(
    _inverted(delays, switch_back=False), everybody
  )
  want = _oracle(
    start,
    tiny.data(),
    everybody,
    lambda d, o, n, tau: ([3 * x for x in d] if tau else d, 1.0),
    delays,
  )[-1]
  federation.assert_close(got.server.model(), want)


def test_e1_and_e2_are_those_of_the_oracle(monkeypatch):
  """By what really arrives: base of round t is the estimate's round."""
  monkeypatch.setattr(inverted, "estimate", _always(0.9))
  delays = [0, 0, 0, 2, 0, 0, 0]
  rounds, sent = 6, {}
  everybody = [list(range(7))] * rounds

  def correct(delta, old, now, tau):
    if tau:
      sent[len(sent) + 2] = delta  # round of arrival -> what came
      return [0.9 * d for d in delta], 1.0
    return delta, 1.0

  first, _, seen = federation.run(
    _inverted(delays, switch_back=False), everybody
  )
  start = federation.weights(first.server.model())
  _oracle(start, tiny.data(), everybody, correct, delays)

  def error(a, factor, b):
    pairs = zip(a, b, strict=True)
    missed = sum(np.abs(factor * x - y).sum() for x, y in pairs)
    return missed / sum(np.abs(y).sum() for y in b)

  told = 5  # the truth of round 2 came in round 4, told in round 5
  metrics = seen[told].metrics
  late, truth = sent[told - 3], sent[told - 1]
  assert float(metrics["e1"][0]) == pytest.approx(
    error(late, 0.9, truth), rel=1e-3
  )
  assert float(metrics["e2"][0]) == pytest.approx(
    error(late, 1.0, truth), rel=1e-3
  )
  a, b = (np.concatenate([x.ravel() for x in w]) for w in (late, truth))
  cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  assert float(metrics["cosine2"][0]) == pytest.approx(cosine, rel=1e-4)
  assert float(metrics["judged"][0]) == 1


def test_an_inversion_that_diverges_is_not_used(monkeypatch):
  monkeypatch.setattr(inverted, "estimate", _always(jnp.nan))
  _, got, seen = federation.run(_inverted())
  _, want, _ = federation.run(_stale())
  federation.assert_same(got.server.model(), want.server.model())
  assert all(np.asarray(s.ok).all() for s in seen)
  memory = got.server.memory
  assert not np.asarray(memory.seen).any()
  assert np.isfinite(np.asarray(memory.start.x)).all()


def test_an_estimate_whose_truth_never_comes_is_not_judged(monkeypatch):
  """Client 3 takes part in rounds 1 and 4 and is two rounds late."""
  monkeypatch.setattr(inverted, "estimate", _always(100.0))
  delays = [0, 0, 0, 2, 0, 0, 0]
  cohorts = [[0, 1], [0, 1], [0, 3], [0, 1], [0, 1], [0, 3], [0, 3]]
  _, last, seen = federation.run(_inverted(delays), cohorts)
  assert float(seen[-1].metrics["judged"][0]) == 0
  np.testing.assert_array_equal(last.server.memory.off, [False])
  assert int(last.server.memory.count[0]) == 3


def test_a_real_inversion_runs_in_a_round():
  """All late clients at once; fresh ones are left alone."""
  _, last, seen = federation.run(
    _inverted([0, 1, 0, 1, 0, 0, 1], epochs=5), federation.EVERYBODY
  )
  told = seen[-1].metrics
  assert float(told["inverted"][0]) == 1
  assert 0 < float(told["inversion_error"][0]) < 0.9
  memory = last.server.memory
  assert np.asarray(memory.seen).all()
  x = np.asarray(memory.start.x)
  assert np.abs(x).max() <= 4 and np.ptp(x) > 1


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: _stale(delays=[0, -1]), "whole numbers of rounds"),
    (lambda: _stale(delays=[0.5]), "whole numbers of rounds"),
    (lambda: _stale(delays=[]), "one number of rounds a client"),
    (lambda: corrections.polynomial(-0.5), "amplifies late updates"),
    (lambda: corrections.halving(0), "above 0"),
    (lambda: _inverted(pending=0), "at least one estimate"),
    (
      lambda: _inverted(search=SEARCH._replace(box=(1.0, -1.0))),
      "holds nothing",
    ),
  ],
)
def test_mistakes_are_named(make, message):
  with pytest.raises(UserError, match=message):
    make()


@pytest.mark.parametrize("make", [_stale, _inverted])
def test_privacy_and_robust_wrappers_refuse(make):
  """They are for plain means; docs/staleness.md says so."""
  with pytest.raises(UserError, match="weighted mean"):
    privacy.differentially_private(
      make(), clip=1.0, noise_multiplier=1.0, cohort_size=2
    )
  with pytest.raises(UserError, match="weighted mean"):
    robust.with_reducer(make(), robust.coordinate_median(2))
  private = privacy.locally_private(make(), clip=1.0, noise_multiplier=1.0)
  with pytest.raises(UserError, match="float messages"):
    federation.run(private, [[0, 1]])


def test_the_inversion_refuses_minibatches():
  algorithm = inverted_fed_avg(
    tiny.mlp(),
    delays=DELAYS,
    rate=RATE,
    batch_size=8,
    cohort_size=7,
    search=SEARCH,
  )
  with pytest.raises(UserError, match="give batch_size >= 20"):
    federation.run(algorithm, [[0, 1]])


def test_a_stack_that_is_too_small_is_not_silent():
  algorithm = stale_fed_avg(
    tiny.mlp(),
    delays=[0] * 7,
    optimizer=optax.sgd(RATE),
    batch_size=32,
    cohort_size=2,
  )
  _, last, _ = federation.run(algorithm, [[0, 1, 2]])
  assert np.isnan(federation.weights(last.server.model())[0]).all()
