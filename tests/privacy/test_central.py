"""DP-FedAvg against NumPy, its noise against statistics, and identities."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import scipy.stats
import tiny

from fedjax_het import robust
from fedjax_het.algorithms import fed_avg
from fedjax_het.core import evaluate, mesh, reduce, rounds, wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Upload
from fedjax_het.masks import votes
from fedjax_het.privacy import (
  AdaptiveClip,
  differentially_private,
  locally_private,
)
from fedjax_het.selection import uniform
from fedjax_het.training.checkpoint import Checkpointer

COHORT = 5
IDS = [4, 0, 6, 2, 1]
INF = float("inf")
CLIP = 9.0  # draws below have norms of 3 to 24


def _without_training(reducer=None, size=(40, 5)):
  """Clients send draws of different lengths, NaN where their data are."""

  def client(message, state, data, key):
    count = data.count.astype(jnp.float32)
    length = count / 12 + 0 * data.take(jnp.int32(0)).x[0]
    draw = jax.random.normal(key, (jnp.size(message["a"]) + 3,))
    change = {"a": draw[3:].reshape(size), "b": draw[:3]}
    change = jax.tree.map(lambda x: length * x, change)
    return Upload(change, count, state + 1, {"count": count})

  return Algorithm(
    init=lambda key: {"a": jnp.zeros(size), "b": jnp.zeros(3)},
    downlink=lambda state, client_id: state,
    client=client,
    reducer=reducer or reduce.weighted_mean(),
    server=lambda state, reduced: reduced,
    global_params=lambda state: state,
    local_steps=lambda count, budget: jnp.minimum(count, budget),
    init_client=lambda key: jnp.float32(0),
    predict=lambda state, kept, client_id: state,
  )


def _start(algorithm, seed=7):
  return rounds.init_state(algorithm, jax.random.key(seed), tiny.CLIENTS)


def _one_round(algorithm, ids=IDS, data=None, state=None, **kwargs):
  run = rounds.make_round(
    algorithm, lambda key, data: jnp.asarray(ids), **kwargs
  )
  state = _start(algorithm) if state is None else state
  return jax.jit(run)(state, data or tiny.data())


def _flat(tree):
  leaves = jax.tree.leaves(tree)
  return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in leaves])


def _messages(algorithm, ids=IDS):
  """What those clients send unclipped: each alone, as a mean of one."""
  state, data = _start(algorithm), tiny.data()

  @jax.jit
  def alone(ids):
    return rounds.make_round(algorithm, lambda key, data: ids)(state, data)

  return np.stack([_flat(alone(jnp.asarray([k]))[0].server) for k in ids])


def _private(algorithm, clip=CLIP, noise=0.0, **kwargs):
  return differentially_private(
    algorithm,
    clip=clip,
    noise_multiplier=noise,
    cohort_size=COHORT,
    **kwargs,
  )


def test_the_sum_of_clipped_messages_over_the_planned_cohort():
  """By NumPy; a dropped client leaves C as it was planned."""
  plain = _without_training()
  sent = _messages(plain)
  norms = np.linalg.norm(sent, axis=1)
  assert 0 < (norms > CLIP).sum() < COHORT
  short = sent * np.minimum(1, CLIP / norms)[:, None]
  assert (np.linalg.norm(short, axis=1) <= CLIP * (1 + 1e-6)).all()
  state, cohort = _one_round(_private(plain))
  got = _flat(state.server.server)
  np.testing.assert_allclose(got, short.sum(axis=0) / COHORT, atol=1e-6)
  np.testing.assert_array_equal(cohort.metrics["clipped"], norms > CLIP)
  np.testing.assert_array_equal(cohort.weight, 1)

  poisoned = tiny.poison(tiny.data(), 6)
  state, cohort = _one_round(_private(plain), data=poisoned)
  assert int(cohort.ok.sum()) == COHORT - 1
  short[IDS.index(6)] = 0
  got = _flat(state.server.server)
  np.testing.assert_allclose(got, short.sum(axis=0) / COHORT, atol=1e-6)


def test_clip_infinite_and_no_noise_is_the_method_with_equal_weights():
  plain = _without_training()
  equal = plain._replace(
    client=lambda *args: plain.client(*args)._replace(weight=jnp.float32(1))
  )
  want, seen = _one_round(equal)
  got, cohort = _one_round(_private(plain, INF))
  federation.assert_same(got.server.server, want.server)
  federation.assert_same(got.clients, want.clients)
  np.testing.assert_array_equal(cohort.up_bytes, seen.up_bytes)
  np.testing.assert_array_equal(cohort.down_bytes, seen.down_bytes)
  weighted, _ = _one_round(plain)
  assert np.abs(_flat(weighted.server) - _flat(want.server)).max() > 0.01


def _noise(noise, num_rounds=2, size=(80, 100), **kwargs):
  """What was added to the model in each round: f64[rounds, P]."""
  plain = _without_training(size=size)
  quiet, loud = (
    _private(plain, **kwargs),
    _private(plain, noise=noise, **kwargs),
  )
  runs = []
  for algorithm in (quiet, loud):
    state, out = _start(algorithm), []
    run = jax.jit(
      rounds.make_round(algorithm, lambda key, data: jnp.asarray(IDS))
    )
    for _ in range(num_rounds):
      state, _ = run(state, tiny.data())
      out.append(_flat(state.server.server))
    runs.append(np.stack(out))
  return runs[1] - runs[0]


def test_the_noise_is_gaussian_of_the_stated_std_and_new_each_round():
  """16,006 draws: the std's own deviation is 0.6 %, the bound 4 of them."""
  noise = _noise(1.5)
  std = 1.5 * CLIP / COHORT
  together = noise.ravel()
  assert abs(together.std() / std - 1) < 4 / np.sqrt(2 * together.size)
  assert abs(together.mean()) < 4 * std / np.sqrt(together.size)
  assert scipy.stats.kstest(together / std, "norm").pvalue > 1e-3
  assert abs(np.corrcoef(noise)[0, 1]) < 4 / np.sqrt(noise.shape[1])


def test_the_noise_does_not_depend_on_order_chunks_or_devices():
  algorithm = _private(_without_training(), noise=1.0)
  want, _ = _one_round(algorithm)
  devices = mesh.client_mesh(jax.devices())
  for got, _ in (
    _one_round(algorithm, sorted(IDS), chunk=2),
    _one_round(algorithm, IDS[::-1], chunk=2, mesh=devices),
  ):
    federation.assert_same(got.server.server, want.server.server)
  other, _ = _one_round(algorithm, state=_start(algorithm, seed=8))
  gap = _flat(other.server.server) - _flat(want.server.server)
  assert np.abs(gap).max() > 1  # other noise from another seed


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path):
  algorithm = _private(
    _without_training(), noise=1.0, adaptive_clip=AdaptiveClip()
  )
  run = jax.jit(
    rounds.make_round(algorithm, lambda key, data: jnp.asarray(IDS))
  )
  state, _ = run(_start(algorithm), tiny.data())
  with Checkpointer(tmp_path, {"algorithm": "private"}) as checkpoints:
    checkpoints.save(1, state, {})
  with Checkpointer(tmp_path, {"algorithm": "private"}) as checkpoints:
    _, resumed = checkpoints.restore(_start(algorithm))
  state, _ = run(state, tiny.data())
  resumed, _ = run(resumed, tiny.data())
  for a, b in zip(
    jax.tree.leaves(state.server.server),
    jax.tree.leaves(resumed.server.server),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  assert int(resumed.server.round) == 2
  assert resumed.server.clip == state.server.clip


def test_a_method_that_asks_for_the_weight_is_told_the_planned_cohort():
  weighted = _without_training(reduce.mean_and_weight())
  told = weighted._replace(
    init=lambda key: (weighted.init(key), jnp.float32(0)),
    downlink=lambda state, client_id: state[0],
    server=lambda state, reduced: reduced,
  )
  poisoned = tiny.poison(tiny.data(), 6)
  state, _ = _one_round(_private(told), data=poisoned)
  want, _ = _one_round(_private(_without_training()), data=poisoned)
  mean, weight = state.server.server
  federation.assert_same(mean, want.server.server)
  assert float(weight) == COHORT


def test_the_clip_follows_the_quantile_of_the_norms():
  """Without noise: one step by NumPy, then the median of the norms."""
  plain = _without_training()
  adaptive = AdaptiveClip(quantile=0.5, rate=0.2)
  algorithm = _private(plain, clip=2.0, adaptive_clip=adaptive)
  norms = np.linalg.norm(_messages(plain), axis=1)
  state, cohort = _one_round(algorithm)
  share = (norms <= 2.0).mean()
  want = 2.0 * np.exp(-0.2 * (share - 0.5))
  np.testing.assert_allclose(float(state.server.clip), want, rtol=1e-5)
  quiet = wire.nbytes(plain.init(None))
  np.testing.assert_array_equal(cohort.up_bytes, quiet + 4)
  np.testing.assert_array_equal(cohort.down_bytes, quiet + 4)

  run = rounds.make_round(algorithm, lambda key, data: jnp.asarray(IDS))
  state, history = jax.jit(rounds.make_block(run, 60))(state, tiny.data())
  late = history["rounds"].metrics["clipped"][-20:]
  assert 0.3 < float(late.mean()) < 0.7


def test_the_count_and_the_messages_share_one_budget():
  """z' makes up for the second query; its noise is measured."""
  adaptive = AdaptiveClip(count_noise=1.0)
  left = (1.5**-2 - (2 * 1.0) ** -2) ** -0.5
  assert left > 2  # against 1.5 without
  noise = _noise(1.5, num_rounds=1, adaptive_clip=adaptive).ravel()
  std = left * CLIP / COHORT
  assert abs(noise.std() / std - 1) < 4 / np.sqrt(2 * noise.size)
  algorithm = _private(_without_training(), noise=1.5, adaptive_clip=adaptive)
  quiet = _private(_without_training(), adaptive_clip=adaptive)
  run = jax.jit(
    jax.vmap(
      rounds.make_round(algorithm, lambda key, data: jnp.asarray(IDS)),
      in_axes=(0, None),
    )
  )
  starts = jax.vmap(lambda key: rounds.init_state(algorithm, key, 7))(
    jax.random.split(jax.random.key(0), 400)
  )
  after, cohort = run(starts, tiny.data())
  share = 1 - np.asarray(cohort.metrics["clipped"]).mean(axis=1)
  moved = -np.log(np.asarray(after.server.clip) / CLIP) / 0.2 + 0.5
  error = moved - share  # N(0, (count_noise / C)^2)
  assert abs(error.std() * COHORT - 1) < 4 / np.sqrt(2 * error.size)
  assert abs(error.mean()) < 4 / COHORT / np.sqrt(error.size)
  state, _ = _one_round(quiet)  # and none at all without noise
  fits = (np.linalg.norm(_messages(_without_training()), axis=1) <= CLIP).mean()
  want = CLIP * np.exp(-0.2 * (fits - 0.5))
  np.testing.assert_allclose(float(state.server.clip), want, rtol=1e-5)


def test_local_noise_is_in_every_upload():
  plain = _without_training(size=(80, 100))
  loud = locally_private(plain, clip=CLIP, noise_multiplier=0.5)
  quiet = locally_private(plain, clip=CLIP, noise_multiplier=0)
  sent, clean = _messages(loud, [0, 1]), _messages(quiet, [0, 1])
  norms = np.linalg.norm(clean, axis=1)
  np.testing.assert_allclose(norms[1], CLIP, rtol=1e-5)
  noise = sent - clean
  assert abs(noise.std() / (0.5 * CLIP) - 1) < 4 / np.sqrt(2 * noise.size)
  assert abs(np.corrcoef(noise)[0, 1]) < 4 / np.sqrt(noise.shape[1])
  robust.with_reducer(loud, robust.coordinate_median(COHORT))  # any reducer
  _, cohort = _one_round(loud)
  np.testing.assert_array_equal(cohort.weight, 1)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda a: _private(a, clip=-1.0), "clip must not be negative"),
    (lambda a: _private(a, clip=0), "clip=0"),
    (lambda a: _private(a, noise=float("nan")), "noise_multiplier"),
    (lambda a: _private(a, INF, 1.0), "finite clip"),
    (lambda a: _private(_private(a)), "weighted mean of float"),
    (
      lambda a: _private(
        robust.with_reducer(a, robust.coordinate_median(COHORT))
      ),
      "weighted mean of float",
    ),
    (
      lambda a: robust.with_reducer(_private(a), robust.krum(COHORT, 1)),
      "weighted mean of float",
    ),
    (
      lambda a: _private(a._replace(reducer=votes.sign_mean())),
      "weighted mean of float",
    ),
    (
      lambda a: _private(a, noise=3.0, adaptive_clip=AdaptiveClip(0.5, 0.2, 1)),
      "whole budget",
    ),
    (
      lambda a: _private(a, adaptive_clip=AdaptiveClip(quantile=1.5)),
      "quantile",
    ),
  ],
)
def test_what_makes_no_sense_is_refused(make, message):
  with pytest.raises(UserError, match=message):
    make(_without_training())


def test_messages_that_have_no_norm_are_refused():
  plain = _without_training()
  whole = plain._replace(
    client=lambda *args: plain.client(*args)._replace(
      message={"a": jnp.zeros(2, jnp.int32)}
    )
  )
  with pytest.raises(UserError, match="float messages"):
    _one_round(locally_private(whole, clip=1.0, noise_multiplier=1.0))


def test_fed_avg_with_clipping_equals_the_loop():
  """Three rounds of one full-batch step, clipped in float64."""
  clip, n = 0.05, tiny.CLIENTS
  plain = fed_avg(
    tiny.mlp(), optimizer=optax.sgd(0.1), batch_size=federation.BATCH
  )
  algorithm = differentially_private(
    plain, clip=clip, noise_multiplier=0.0, cohort_size=n
  )
  first, last, seen = federation.run(algorithm)
  want = federation.weights(first.server.server.params)
  cut = 0
  for _ in range(3):
    total = [np.zeros_like(w) for w in want]
    for k in range(n):
      arrays = oracles.client_arrays(tiny.data(), k)
      change = [-0.1 * g for g in oracles.loss_and_grad(*want, *arrays)[1]]
      norm = np.sqrt(sum((c**2).sum() for c in change))
      cut += norm > clip
      total = [
        t + min(1, clip / norm) * c for t, c in zip(total, change, strict=True)
      ]
    want = [w + t / n for w, t in zip(want, total, strict=True)]
  assert cut > n
  federation.assert_close(last.server.server.params, want)
  assert sum(float(c.metrics["clipped"].sum()) for c in seen) == cut


def test_it_learns_with_a_little_noise_and_not_with_much():
  """The multiplier is traced: one program for both."""
  model = tiny.mlp()

  def private(noise):
    return differentially_private(
      fed_avg(model, optimizer=optax.sgd(0.1), batch_size=8),
      clip=1.0,
      noise_multiplier=noise,
      cohort_size=tiny.CLIENTS,
    )

  @jax.jit
  def run(noise, state, data):
    algorithm = private(noise)
    block = rounds.make_block(
      rounds.make_round(algorithm, uniform(tiny.CLIENTS)),
      25,
      evaluate.make_evaluate(algorithm, model),
    )
    return block(state, data)[1]["eval"]["accuracy"]

  little, much = (
    float(run(jnp.float32(noise), _start(private(noise)), tiny.data()))
    for noise in (0.05, 20.0)
  )
  assert little > 0.75 > 0.6 > much
