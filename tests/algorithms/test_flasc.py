"""FLASC and its rivals: the NumPy loop, degenerate identities, masks, bytes."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_lora as oracles
import pytest
import tiny

from fedjax_het import models
from fedjax_het.algorithms import (
  fed_avg,
  fed_lora,
  federated_select,
  ffa_lora,
  flasc,
  het_lora,
  sparse_adapter,
)
from fedjax_het.algorithms._fed_lora import without_a
from fedjax_het.algorithms._lora_entries import adapters
from fedjax_het.algorithms._lora_parts import layout_of
from fedjax_het.core import local, rounds, wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Model
from fedjax_het.masks.sparse_wire import mask_nbytes
from fedjax_het.models.transformer import Shape, transformer
from fedjax_het.privacy.central import differentially_private

RANK = 4
SIZES = {
  "a": tiny.FEATURES * RANK,
  "b": RANK * tiny.HIDDEN,
  "head": tiny.HIDDEN * tiny.CLASSES,
}
TOTAL = sum(SIZES.values())
LOCAL = dict(optimizer=optax.sgd(0.1), batch_size=federation.BATCH, epochs=3)
ADAPTED = adapters(tiny.mlp(), RANK)
LAYOUT = layout_of(ADAPTED, include_full=True)


# Compilation is nearly all of the time.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def run(algorithm, cohorts=federation.EVERYBODY, data=None):
  """(the server's state before and after every round, cohorts)."""
  data = data or tiny.data()
  start = jit(lambda key: rounds.init_state(algorithm, key, data.num_clients))(
    federation.KEY
  )

  @jit
  def one_round(state, data, ids):
    return rounds.make_round(algorithm, lambda key, data: ids)(state, data)

  states, seen = [start], []
  for ids in cohorts:
    state, cohort = one_round(states[-1], data, jnp.asarray(ids))
    states.append(state)
    seen.append(cohort)
  return [state.server for state in states], seen


def parts(state, vector=None):
  """The trained leaves as the oracle names them; the vector or another."""
  tree = LAYOUT.unravel(state.vector if vector is None else vector)
  pair = tree["lora"]["leaf_0"]
  (head,) = tree["full"].values()
  return {
    "a": np.asarray(pair["a"]),
    "b": np.asarray(pair["b"]),
    "head": np.asarray(head),
  }


def float64(state):
  return {n: p.astype(np.float64) for n, p in parts(state).items()}


def base(state):
  return np.asarray(state.frozen["leaf_0/kernel"], np.float64)


def masks(state, tier=0):
  return parts(state, state.masks[tier])


@pytest.mark.parametrize("by_examples", [False, True])
@pytest.mark.parametrize(
  ("scope", "server"), [("matrix", "sgd"), ("global", "adam")]
)
def test_it_equals_the_loop(scope, server, by_examples):
  optimizer = {"sgd": optax.sgd(1.0), "adam": optax.adam(0.01)}[server]
  algorithm = flasc(
    ADAPTED,
    server_optimizer=optimizer,
    down_density=0.5,
    up_density=0.2,
    scope=scope,
    by_examples=by_examples,
    **LOCAL,
  )
  (start, *_, last), _ = run(algorithm, federation.COHORTS)
  want = oracles.flasc(
    base(start),
    float64(start),
    tiny.data(),
    federation.COHORTS,
    scale=16 / RANK,
    rate=0.1,
    epochs=3,
    down=0.5,
    up=0.2,
    scope=scope,
    server=server,
    by_examples=by_examples,
  )
  got = parts(last)
  for name in oracles.PARTS:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=2e-5)
    assert not np.allclose(want[name], parts(start)[name], atol=1e-3)
  # the global model is what clients receive next
  sent = oracles.top_k(want, 0.5, scope)
  kept = {n: np.where(sent[n], want[n], 0) for n in oracles.PARTS}
  federation.assert_close(
    algorithm.global_params(last),
    [base(start) + 16 / RANK * kept["a"] @ kept["b"], kept["head"]],
    atol=2e-4,
  )


def test_densities_of_one_are_fed_avg_of_the_adapters():
  dense = fed_lora(ADAPTED, by_examples=True, **LOCAL)
  (start, *_, got), seen = run(dense, federation.COHORTS)
  view = Model(
    lambda key: ADAPTED.init(key)[1],
    lambda trained, x: tiny.mlp().apply(ADAPTED.join(start.frozen, trained), x),
  )
  want, others = run(fed_avg(view, **LOCAL), federation.COHORTS)
  federation.assert_same(LAYOUT.unravel(got.vector), want[-1].params)
  for ours, theirs in zip(seen, others, strict=True):
    np.testing.assert_array_equal(ours.up_bytes, theirs.up_bytes)
    np.testing.assert_array_equal(ours.down_bytes, theirs.down_bytes)
  # the base is paid once
  message = dense.downlink(start, jnp.int32(0))
  assert wire.setup_nbytes(message) == 4 * tiny.FEATURES * tiny.HIDDEN


def test_a_global_mask_starves_b_and_heals_a_share_does_not():
  runs = {
    scope: run(flasc(ADAPTED, down_density=1 / 16, scope=scope, **LOCAL))[0]
    for scope in ("global", "matrix")
  }
  first = {scope: masks(states[0]) for scope, states in runs.items()}
  assert first["global"]["b"].sum() == 0
  kept = {name: int(flag.sum()) for name, flag in first["matrix"].items()}
  assert kept == {n: max(1, round(size / 16)) for n, size in SIZES.items()}
  assert masks(runs["global"][-1])["b"].sum() > 0


def test_a_mask_frozen_before_b_moves_leaves_the_head_alone():
  early = sparse_adapter(
    ADAPTED, density=1 / 4, warm_rounds=0, scope="global", **LOCAL
  )
  (start, *_, last), _ = run(early)
  was, now = parts(start), parts(last)
  np.testing.assert_array_equal(was["b"], now["b"])
  assert (was["head"] != now["head"]).any()
  before, after = (
    early.global_params(state)["first"] for state in (start, last)
  )
  np.testing.assert_array_equal(before, after)


def test_sparse_adapter_keeps_its_mask_and_moves_nothing_else():
  """Though Adam has moments from the dense rounds, and weight decay."""
  algorithm = sparse_adapter(
    ADAPTED,
    density=0.25,
    warm_rounds=1,
    server_optimizer=optax.adamw(0.01, weight_decay=0.1),
    **LOCAL,
  )
  (_, fixed, _, last), seen = run(algorithm)
  mask = np.asarray(fixed.masks[0])
  assert mask.sum() == sum(round(size / 4) for size in SIZES.values())
  np.testing.assert_array_equal(mask, last.masks[0])
  was, now = fixed.vector, last.vector
  np.testing.assert_array_equal(was[~mask], now[~mask])
  assert (was[mask] != now[mask]).all()
  np.testing.assert_array_equal(seen[0].up_bytes, 4 * TOTAL)
  np.testing.assert_array_equal(seen[-1].up_bytes, 4 * mask.sum())
  np.testing.assert_array_equal(seen[-1].down_bytes, 4 * mask.sum())
  message = algorithm.downlink(last, jnp.int32(0))
  once = wire.setup_nbytes(message) - 4 * tiny.FEATURES * tiny.HIDDEN
  assert once == mask_nbytes(LAYOUT.unravel(last.masks[0]))


def test_federated_select_trains_what_it_received():
  algorithm = federated_select(ADAPTED, density=0.25, **LOCAL)
  (start, after, _, last), seen = run(algorithm)
  mask = np.asarray(start.masks[0])
  was, now = start.vector, after.vector
  np.testing.assert_array_equal(was[~mask], now[~mask])
  assert (was[mask] != now[mask]).mean() > 0.5
  np.testing.assert_array_equal(seen[0].up_bytes, 4 * mask.sum())
  where = sum(4 + -(-size // 8) for size in SIZES.values())  # bitmaps
  np.testing.assert_array_equal(seen[0].down_bytes, 4 * mask.sum() + where)
  assert (np.asarray(last.masks[0]) != mask).any()


def test_ffa_lora_keeps_a():
  algorithm = ffa_lora(ADAPTED, **LOCAL)
  (start, *_, last), seen = run(algorithm)
  held = start.frozen["a"]["leaf_0"]
  np.testing.assert_array_equal(held, last.frozen["a"]["leaf_0"])
  np.testing.assert_array_equal(
    seen[0].up_bytes, 4 * (SIZES["b"] + SIZES["head"])
  )
  alone = layout_of(without_a(ADAPTED), include_full=True)
  b = alone.unravel(last.vector)["lora"]["leaf_0"]["b"]
  first = start.frozen["base"]["leaf_0/kernel"] + 16 / RANK * held @ b
  got = algorithm.global_params(last)["first"]
  np.testing.assert_allclose(got, first, rtol=1e-5, atol=1e-6)
  assert np.abs(b).min() > 0


@pytest.mark.parametrize("keep", ["first", "largest"])
def test_het_lora_of_full_ranks_is_fed_lora(keep):
  got, _ = run(het_lora(ADAPTED, (RANK, RANK), keep=keep, **LOCAL))
  want, _ = run(fed_lora(ADAPTED, **LOCAL))
  wide = layout_of(ADAPTED, include_full=False)
  federation.assert_same(
    wide.unravel(got[-1].vector), LAYOUT.unravel(want[-1].vector)
  )


@pytest.mark.parametrize("by_holders", [False, True])
def test_het_lora_moves_the_ranks_of_its_clients(by_holders):
  """Client 1 has rank 3, clients 2 and 4 rank 1."""
  algorithm = het_lora(ADAPTED, (1, 3), by_holders=by_holders, **LOCAL)
  (start, last), seen = run(algorithm, [[1, 2, 4]])
  wide = layout_of(ADAPTED, include_full=False)

  def adapter(state):
    return wide.unravel(state.vector)["lora"]["leaf_0"]

  b = np.asarray(adapter(last)["b"])
  assert (b[:3] != 0).all() and (b[3] == 0).all()
  np.testing.assert_array_equal(
    adapter(last)["a"][:, 3], adapter(start)["a"][:, 3]
  )
  each = 4 * (tiny.FEATURES + tiny.HIDDEN)
  head = 4 * SIZES["head"]
  want = [head + rank * each for rank in (3, 1, 1)]
  np.testing.assert_array_equal(seen[0].up_bytes, want)
  # client 1 alone holds rank 1: its change is divided by 1, or by 3
  (_, alone), _ = run(algorithm, [[1]])
  share = 1 if by_holders else 1 / 3
  np.testing.assert_allclose(
    b[1], share * adapter(alone)["b"][1], rtol=1e-4, atol=1e-6
  )


def test_het_lora_takes_the_largest_rows():
  algorithm = het_lora(ADAPTED, (2,), keep="largest", **LOCAL)
  (start, *_), seen = run(algorithm)
  wide = layout_of(ADAPTED, include_full=False)
  pair = wide.unravel(start.vector)
  b = np.zeros((RANK, tiny.HIDDEN), np.float32)
  b[1], b[3] = 2.0, -3.0
  pair["lora"]["leaf_0"]["b"] = jnp.asarray(b)
  state = algorithm.server(
    start._replace(vector=wide.ravel(pair)),
    jnp.zeros_like(start.vector),
  )
  mask = wide.unravel(state.masks[0])["lora"]["leaf_0"]
  np.testing.assert_array_equal(mask["b"][:, 0], [False, True, False, True])
  np.testing.assert_array_equal(mask["a"][0], [False, True, False, True])
  values = 4 * (2 * (tiny.FEATURES + tiny.HIDDEN) + SIZES["head"])
  np.testing.assert_array_equal(seen[0].down_bytes, values + 1)  # and 4 bits


def test_tiers_have_budgets_by_client():
  down = (1 / 16, 1.0)
  algorithm = flasc(
    ADAPTED, down_density=down, up_density=(1 / 16, 1 / 2), **LOCAL
  )
  (start, _), seen = run(algorithm, [[1, 2, 4]])
  assert np.asarray(start.masks[1]).all()
  got = dict(zip([1, 2, 4], np.asarray(seen[0].down_bytes), strict=True))
  assert got[1] == 4 * TOTAL  # dense: no positions
  kept = [max(1, round(size / 16)) for size in SIZES.values()]
  listed = [
    min(size, k * (size - 1).bit_length())
    for size, k in zip(SIZES.values(), kept, strict=True)
  ]
  want = 4 * sum(kept) + sum(4 + -(-bits // 8) for bits in listed)
  assert got[2] == got[4] == want


def test_downloads_decay():
  algorithm = flasc(ADAPTED, down_density=0.5, down_decay=(0.5, 2), **LOCAL)
  states, _ = run(algorithm)
  counts = [int(state.masks.sum()) for state in states]
  half = sum(round(size / 2) for size in SIZES.values())
  fourth = sum(round(round(size / 2) / 2) for size in SIZES.values())
  assert counts == [half, half, fourth, fourth]


def test_privacy_wraps_it():
  """Its upload is made of floats: it is clipped, averaged, noised as any."""
  options = dict(down_density=0.5, up_density=0.25, **LOCAL)
  plain = flasc(ADAPTED, **options)
  private = [
    differentially_private(
      plain, clip=clip, noise_multiplier=noise, cohort_size=tiny.CLIENTS
    )
    for clip, noise in ((float("inf"), 0), (0.01, 0), (0.01, 1.0))
  ]
  want, seen = run(plain)
  free, short, noisy = (run(one) for one in private)
  federation.assert_same(free[0][-1].server.vector, want[-1].vector)
  np.testing.assert_array_equal(free[1][0].up_bytes, seen[0].up_bytes)
  moved = short[0][-1].server.vector - short[0][0].server.vector
  assert 0 < jnp.linalg.norm(moved) <= 3 * 0.01 + 1e-6  # three rounds
  np.testing.assert_array_equal(short[1][0].up_bytes, seen[0].up_bytes)
  moved = noisy[0][-1].server.vector - noisy[0][0].server.vector
  assert (moved != 0).all()  # also where nobody sent anything
  deviation = np.std(moved) / (np.sqrt(3) * 0.01 / tiny.CLIENTS)
  assert 0.8 < deviation < 1.6


def test_text_and_images_train_beside_their_matrices():
  """One round of a causal transformer, all places in the loss."""
  network = transformer(
    Shape(vocabulary=5, width=8, heads=2, kv_heads=2, head_width=4, hidden=8)
  )
  adapted = models.adapt(network, rank=2, full=())
  algorithm = flasc(adapted, loss=local.next_tokens(network), **LOCAL)
  data = tiny.data()
  x = (jnp.abs(data.examples.x[:, :6]) * 3).astype(jnp.int32) % 5
  data = data._replace(examples=data.examples._replace(x=x))
  (start, *_, last), seen = run(algorithm, [[1, 2]] * 2, data)
  assert np.asarray(seen[-1].ok).all()
  was, now = (algorithm.global_params(s) for s in (start, last))
  assert jax.tree.structure(now) == jax.tree.structure(
    network.init(jax.random.key(0))
  )
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), was, now)
  assert changed["layer_1"]["q"]["kernel"] and changed["layer_0"]["v"]["kernel"]
  assert not changed["layer_0"]["k"]["kernel"]
  assert not changed["embed"]["embedding"]


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: flasc(ADAPTED, down_density=0.0, **LOCAL), "in \\(0, 1\\]"),
    (lambda: flasc(ADAPTED, scope="matrx", **LOCAL), "matrix"),
    (lambda: flasc(ADAPTED, evaluate="send", **LOCAL), "sent"),
    (lambda: flasc(ADAPTED, down_decay=(2.0, 1), **LOCAL), "factor"),
    (
      lambda: flasc(
        ADAPTED, down_density=(0.1, 0.2), up_density=(0.1,) * 3, **LOCAL
      ),
      "one a tier",
    ),
    (lambda: sparse_adapter(ADAPTED, warm_rounds=-1, **LOCAL), "0 or more"),
    (lambda: het_lora(ADAPTED, (5,), **LOCAL), "1 ... 4"),
    (lambda: het_lora(ADAPTED, (1,), keep="frist", **LOCAL), "first"),
  ],
)
def test_mistakes_are_named(make, match):
  with pytest.raises(UserError, match=match):
    make()
