"""Masked sums: exact, uniform to look at, and the same model bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import tiny

from fedjax_het.algorithms import fed_avg, fed_pm, hide_n_seek
from fedjax_het.core import cohort, mesh, rounds, wire
from fedjax_het.core.errors import UserError
from fedjax_het.masks.at_init import prune_at_init
from fedjax_het.privacy import secure_sum, secure_votes

IDS = [4, 0, 6, 2, 1]
SEED = jax.random.key(99)
N, SIZE = 9, 300


def _values(total):
  """Integers of N clients whose sums reach `total`, and no more."""
  rng = np.random.default_rng(0)
  values = rng.integers(0, total // N + 1, size=(N, SIZE))
  values[:, 0], values[:, 1] = 0, total // N
  values[0, 1] += total % N
  return values


@functools.cache
def _masks():
  """Each client's masks with each set of peers that the tests need."""
  return jax.jit(lambda me, peers: secure_sum.pair_masks(SEED, me, peers, SIZE))


def _is(ids):
  return jnp.asarray(np.isin(np.arange(N), ids))


@pytest.mark.parametrize("total", [1, 9, 100, 2**24 - 1])
@pytest.mark.parametrize("gone", [[], [3], [0, 5, 8]])
def test_the_sum_is_exact_whoever_drops_out(total, gone):
  cohort_ids = [k for k in range(N) if k != 7]  # 7 is not asked at all
  here = [k for k in cohort_ids if k not in gone]
  values = _values(total)
  uploads = [
    secure_sum.mask_upload(
      jnp.asarray(values[k], jnp.int32), _masks()(k, _is(cohort_ids)), total
    )
    for k in here
  ]
  width = int(np.ceil(np.log2(total + 1)))
  for upload in uploads:
    assert wire.nbytes(upload) == -(-SIZE * width // 8)
    assert len(wire.encode(upload)) == wire.nbytes(upload)
    back = wire.decode(wire.encode(upload), upload)
    np.testing.assert_array_equal(back.values, upload.values)
  seen = sum(np.asarray(u.values, np.uint64) for u in uploads)
  left = secure_sum.left_over(SEED, _is(here), _is(cohort_ids), SIZE)
  got = secure_sum.unmask(jnp.asarray(seen, jnp.uint32), left, total)
  np.testing.assert_array_equal(got, values[here].sum(axis=0))
  if gone:  # without the survivors' seeds it is noise
    raw = secure_sum.unmask(jnp.asarray(seen, jnp.uint32), 0 * left, total)
    assert (np.asarray(raw) != values[here].sum(axis=0)).mean() > 0.3


def test_an_upload_looks_uniform_whatever_is_in_it():
  total, size = 15, 8000  # 4 bits
  masks = secure_sum.pair_masks(SEED, jnp.int32(2), _is(range(N)), size)
  for values in (np.zeros(size), np.ones(size)):
    sent = secure_sum.mask_upload(jnp.asarray(values, jnp.int32), masks, total)
    counts = np.bincount(sent.values, minlength=16)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
  # alone in a cohort there is nobody to hide behind
  alone = secure_sum.pair_masks(SEED, jnp.int32(2), _is([2]), size)
  assert not np.any(alone)


def test_masks_of_pairs_and_rounds_are_unlike():
  rows = [np.asarray(_masks()(1, _is([k]))) for k in (0, 2, 3)]
  other = secure_sum.pair_masks(
    jax.random.fold_in(SEED, 1), jnp.int32(1), _is([0]), SIZE
  )
  rows.append(np.asarray(other))
  for i, a in enumerate(rows):
    for b in rows[i + 1 :]:
      assert (a == b).mean() < 0.01 and (a == -b).mean() < 0.01


@pytest.mark.parametrize("total", [0, 2**24])
def test_totals_that_cannot_be_counted(total):
  with pytest.raises(UserError, match="largest sum"):
    secure_sum.bits_for(total)


# ---- inside the engine


@functools.cache
def _signs(downlink="mean"):
  return hide_n_seek(
    tiny.mlp(),
    prune_at_init(tiny.mlp(), tiny.INPUT_SHAPE, density=0.5, iterations=2),
    optimizer=optax.adam(0.3),
    batch_size=8,
    epochs=2,
    downlink=downlink,
    cohort_size=len(IDS),
  )


def _run(algorithm, num_rounds=2, data=None, ids=IDS, **kwargs):
  run = rounds.make_round(
    algorithm, lambda key, data: jnp.asarray(ids), **kwargs
  )
  state = rounds.init_state(algorithm, jax.random.key(5), tiny.CLIENTS)
  block = jax.jit(rounds.make_block(run, num_rounds))
  state, history = block(state, data or tiny.data())
  return state.server, history["rounds"]


def _assert_equal(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(a, b)


def _examples():
  return int(np.asarray(tiny.data().train.count)[IDS].sum())


def test_hide_n_seek_weighted_by_examples_is_the_same_bit_for_bit():
  """With a client that is dropped, in chunks and over devices, two rounds."""
  plain, total = _signs(), _examples()
  secure = secure_votes(plain, num_clients=tiny.CLIENTS, total=total)
  poisoned = tiny.poison(tiny.data(), 6)
  want, seen = _run(plain, data=poisoned)
  got, masked = _run(
    secure,
    data=poisoned,
    chunk=2,
    mesh=mesh.client_mesh(jax.devices()[:2]),
  )
  _assert_equal(got.server, want)
  np.testing.assert_array_equal(masked.ok, seen.ok)
  assert not masked.ok[:, IDS.index(6)].any()
  nz = want.mean.size
  width = int(np.ceil(np.log2(total + 1)))
  assert width == 6  # 58 examples
  np.testing.assert_array_equal(seen.up_bytes, -(-nz // 8))
  np.testing.assert_array_equal(masked.up_bytes, -(-nz * width // 8))
  np.testing.assert_array_equal(masked.down_bytes, seen.down_bytes + 4)


@pytest.mark.parametrize("name", ["count", "fed_pm"])
def test_one_vote_a_client_is_the_same_bit_for_bit(name):
  plain = _signs("count")
  if name == "fed_pm":
    plain = fed_pm(tiny.mlp(), optimizer=optax.adam(0.1), batch_size=8)
  secure = secure_votes(plain, num_clients=tiny.CLIENTS, total=len(IDS))
  want, seen = _run(plain)
  got, masked = _run(secure)
  _assert_equal(got.server, want)
  # 3 bits instead of 1: counts of 0 to 5
  plain_bytes, bytes_now = (np.asarray(c.up_bytes, int) for c in (seen, masked))
  assert (abs(3 * plain_bytes - bytes_now) < 3).all()


def test_a_real_round_summed_outside_the_engine():
  """An announced cohort: the masked uploads of HideNseek give its counts."""
  plain, data = _signs("count"), tiny.data()
  state = plain.init(jax.random.key(1))

  @jax.jit
  def upload(k):
    shard = cohort.client_data(data, k)
    key = jax.random.fold_in(jax.random.key(2), k)
    return plain.client(plain.downlink(state, k), (), shard, key).message

  bits = [np.asarray(upload(jnp.int32(k)).unpack()) > 0 for k in IDS]
  peers = jnp.asarray(np.isin(np.arange(tiny.CLIENTS), IDS))
  total, seen = len(IDS), 0
  for k, row in zip(IDS, bits, strict=True):
    masks = secure_sum.pair_masks(SEED, jnp.int32(k), peers, row.size)
    sent = secure_sum.mask_upload(jnp.asarray(row, jnp.int32), masks, total)
    assert (np.asarray(sent.values) != row).mean() > 0.5
    seen = seen + np.asarray(sent.values, np.uint64)
  nothing = jnp.zeros(row.size, jnp.uint32)
  got = secure_sum.unmask(jnp.asarray(seen, jnp.uint32), nothing, total)
  np.testing.assert_array_equal(got, np.sum(bits, axis=0))


def test_more_weight_than_stated_is_not_silent():
  secure = secure_votes(
    _signs(), num_clients=tiny.CLIENTS, total=_examples() - 1
  )
  got, _ = _run(secure, num_rounds=1)
  assert np.isnan(np.asarray(got.server.mean)).all()


def test_only_counted_signs_are_masked():
  floats = fed_avg(tiny.mlp(), optimizer=optax.sgd(0.1), batch_size=8)
  with pytest.raises(UserError, match="packed signs"):
    secure_votes(floats, num_clients=tiny.CLIENTS, total=5)
  twice = secure_votes(_signs(), num_clients=tiny.CLIENTS, total=5)
  with pytest.raises(UserError, match="packed signs"):
    secure_votes(twice, num_clients=tiny.CLIENTS, total=5)
