"""What liars send, and spoilt data, against NumPy."""

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
from fedjax_het.core import cohort, reduce, wire
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Examples, Model, Rows, Upload
from fedjax_het.masks import votes

LIARS = [1, 4]
PLAIN = fed_avg(
  tiny.mlp(), optimizer=optax.sgd(0.1), batch_size=federation.BATCH
)


def _without_training(signs=False):
  """A method whose clients send a draw, as floats or packed, and an integer."""

  def client(message, state, data, key):
    draw = jax.random.normal(key, (40, 5))
    floats = votes.pack(draw.ravel()) if signs else draw
    return Upload((floats, message["n"]), data.count.astype("float32"), (), {})

  return Algorithm(
    init=lambda key: {"n": jnp.int32(3)},
    downlink=lambda state, client_id: state,
    client=client,
    reducer=reduce.weighted_mean(),
    server=lambda state, reduced: state,
    global_params=lambda state: state,
    local_steps=lambda count, budget: count,
  )


def _upload(algorithm, k):
  """What client k sends in the first round, and the bytes down."""
  state = algorithm.init(jax.random.key(0))
  message = algorithm.downlink(state, jnp.int32(k))
  data = cohort.client_data(tiny.data(), k)
  upload = algorithm.client(message, (), data, jax.random.key(k))
  return upload, wire.nbytes(message)


ATTACKS = {
  "flip": (robust.sign_flip(), lambda m: -m),
  "flip 3": (robust.sign_flip(3.0), lambda m: -3 * m),
  "boost": (robust.scaling(7.0), lambda m: 7 * m),
  "same": (robust.same_value(-0.5), lambda m: np.full_like(m, -0.5)),
  "zero": (robust.zero(), np.zeros_like),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
  "malicious", [LIARS, np.isin(np.arange(tiny.CLIENTS), LIARS)]
)
def test_only_liars_lie_and_no_byte_more_travels(name, malicious):
  attack, want = ATTACKS[name]
  honest_method = _without_training()
  algorithm = robust.byzantine(honest_method, malicious, attack)
  for k in (0, 1, 4, 6):
    honest, down = _upload(honest_method, k)
    got, down_now = _upload(algorithm, k)
    assert down_now == down == 4
    assert wire.nbytes(got.message) == wire.nbytes(honest.message) == 804
    assert got.weight == honest.weight
    (change, number), (was, _) = got.message, honest.message
    expected = want(np.asarray(was)) if k in LIARS else was
    np.testing.assert_allclose(change, expected, rtol=1e-6)
    assert number == 3


def test_gaussian_noise_is_gaussian_and_new_each_time():
  algorithm = robust.byzantine(_without_training(), LIARS, robust.gaussian(2.0))
  sent = [np.ravel(_upload(algorithm, k)[0].message[0]) for k in LIARS]
  honest = np.ravel(_upload(_without_training(), 1)[0].message[0])
  together = np.concatenate(sent)
  assert scipy.stats.kstest(together / 2, "norm").pvalue > 1e-3
  assert scipy.stats.kstest(together, "norm").pvalue < 1e-3  # std 2, not 1
  assert abs(np.corrcoef(*sent)[0, 1]) < 0.3
  assert abs(np.corrcoef(sent[0], honest)[0, 1]) < 0.3


def test_flipped_signs_are_packed_again():
  honest_method = _without_training(signs=True)
  liar, _ = _upload(
    robust.byzantine(honest_method, LIARS, robust.sign_flip()), 4
  )
  honest, _ = _upload(honest_method, 4)
  (got, _), (was, _) = liar.message, honest.message
  np.testing.assert_array_equal(got.unpack(), -was.unpack())
  back = wire.decode(wire.encode(got), got)
  np.testing.assert_array_equal(back.words, got.words)


def test_the_round_with_a_liar_equals_the_loop():
  """FedAvg's weighted mean with one flipped change, from the float64 oracle."""
  algorithm = robust.byzantine(PLAIN, LIARS, robust.sign_flip(2.0))
  everybody = [list(range(tiny.CLIENTS))]
  first, last, _ = federation.run(algorithm, everybody)
  start = federation.weights(first.server.params)
  counts = np.asarray(tiny.data().train.count, np.float64)
  want = [w.copy() for w in start]
  for k, n in enumerate(counts):
    _, grads = oracles.loss_and_grad(
      *start, *oracles.client_arrays(tiny.data(), k)
    )
    lie = -2.0 if k in LIARS else 1.0
    want = [
      w - n / counts.sum() * lie * 0.1 * g
      for w, g in zip(want, grads, strict=True)
    ]
  federation.assert_close(last.server.params, want)


def test_a_message_without_floats_is_refused():
  plain = _without_training()
  whole = plain._replace(
    client=lambda *args: plain.client(*args)._replace(message=jnp.arange(3))
  )
  with pytest.raises(UserError, match="neither floats"):
    _upload(robust.byzantine(whole, LIARS, robust.sign_flip()), 4)


@pytest.mark.parametrize("bad", [[-1], [[1, 2]], [0.5], ["a"]])
def test_malicious_must_be_clients(bad):
  with pytest.raises(UserError, match="ids"):
    robust.byzantine(PLAIN, bad, robust.zero())


# ---- spoilt data


def test_flip_labels_flips_train_rows_of_those_clients_only():
  data = tiny.data()
  old, new = data.examples.y, robust.flip_labels(data, LIARS).examples.y
  for k in range(tiny.CLIENTS):
    rows = np.asarray(data.train.index[k])[: int(data.train.count[k])]
    want = 2 - old[rows] if k in LIARS else old[rows]
    np.testing.assert_array_equal(new[rows], want)
    rows = np.asarray(data.test.index[k])
    np.testing.assert_array_equal(new[rows], old[rows])
  assert int((old != new).sum()) > 5


def test_flip_labels_by_a_mapping():
  data = tiny.data()
  new = robust.flip_labels(data, range(tiny.CLIENTS), {2: 0}).examples.y
  trained = np.concatenate(
    [
      np.asarray(data.train.index[k])[: int(data.train.count[k])]
      for k in range(tiny.CLIENTS)
    ]
  )
  old = np.asarray(data.examples.y)[trained]
  np.testing.assert_array_equal(new[trained], np.where(old == 2, 0, old))
  with pytest.raises(UserError, match="classes 0 to 2"):
    robust.flip_labels(data, [0], {3: 0})


@pytest.mark.parametrize("whose", ["train", "test"])
def test_shared_rows_are_refused(whose):
  data = tiny.data()
  rows = getattr(data, whose)
  index = rows.index.at[5, 0].set(data.train.index[1, 0])
  shared = data._replace(**{whose: Rows(index, rows.count)})
  with pytest.raises(UserError, match="client 1 shares"):
    robust.flip_labels(shared, [1])
  robust.flip_labels(shared, [0])  # does not hold that row


@pytest.mark.parametrize("clients", [[], [tiny.CLIENTS], [-1]])
def test_unknown_clients_are_refused(clients):
  with pytest.raises(UserError, match="0 to 6"):
    robust.flip_labels(tiny.data(), clients)


def test_backdoor_stamps_a_share_of_the_rows():
  data = tiny.data()
  trigger = robust.pixel_patch((tiny.FEATURES,), target=2, value=9.0, size=3)
  new = robust.backdoor(data, LIARS, trigger, share=0.5)
  stamped = (np.asarray(new.examples.x)[:, -3:] == 9).all(axis=1)
  for k in range(tiny.CLIENTS):
    rows = np.asarray(data.train.index[k])[: int(data.train.count[k])]
    want = -(-len(rows) // 2) if k in LIARS else 0
    assert stamped[rows].sum() == want
  assert stamped.sum() == sum(-(-int(data.train.count[k]) // 2) for k in LIARS)
  assert (np.asarray(new.examples.y)[stamped] == 2).all()
  np.testing.assert_array_equal(
    new.examples.x[~stamped], data.examples.x[~stamped]
  )
  np.testing.assert_array_equal(
    new.examples.x[stamped, :-3], data.examples.x[stamped, :-3]
  )


def test_the_patch_of_an_image_is_a_corner():
  trigger = robust.pixel_patch((5, 4, 2), target=0, value=1.0, size=2)
  want = np.zeros((5, 4, 2), bool)
  want[3:, 2:] = True
  np.testing.assert_array_equal(trigger.mask, want)
  with pytest.raises(UserError, match="patch of 5"):
    robust.pixel_patch((5, 4, 2), target=0, value=1.0, size=5)


def test_attack_success_counts_examples_of_other_classes():
  """A model that takes what is bright at the end for class 1, else class 0."""

  def apply(params, x):
    bright = x[:, -1] > params
    return jnp.stack([~bright, bright], axis=1).astype(jnp.float32)

  model = Model(lambda key: jnp.float32(0), apply)
  x = jnp.zeros((11, 6))
  heldout = Examples(x, jnp.asarray([0, 1] * 5 + [0]))
  trigger = robust.pixel_patch((6,), target=1, value=2.0, size=2)
  for threshold, want in ((1.0, 1.0), (3.0, 0.0)):
    got = robust.attack_success(
      model, jnp.float32(threshold), heldout, trigger, batch_size=4
    )
    assert float(got) == want
  # taken for the target without the trigger: all of the others still count
  zero = robust.pixel_patch((6,), target=0, value=0.0, size=2)
  got = robust.attack_success(model, jnp.float32(1.0), heldout, zero)
  assert float(got) == 1.0
