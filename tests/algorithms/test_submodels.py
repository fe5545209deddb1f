"""Width sub-models against their oracles, and their identities."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles_submodels as oracles
import pytest
import tiny

from fedjax_het import algorithms, models
from fedjax_het.algorithms._chain import chain_of
from fedjax_het.algorithms._kept_values import holders_mean, kept_values
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Model
from fedjax_het.models.convnets import _ConvNet
from fedjax_het_kernels.overlap_mean import reference

RATE, EPOCHS = 0.1, 3
RATES = (1.0, 0.5, 0.25)  # 9, 5 and 3 of 9 units
SETTINGS = dict(
  optimizer=optax.sgd(RATE), batch_size=federation.BATCH, epochs=EPOCHS
)
PLAIN = dict(masked_loss=False, by_examples=True)


@functools.cache
def _data():
  """Client 4 has two classes, client 5 one: the masked loss matters."""
  data = tiny.data()
  y = np.array(data.examples.y)
  for client, classes in ((4, 2), (5, 1)):
    y[np.asarray(data.train.index)[client]] %= classes
  return data._replace(examples=data.examples._replace(y=jnp.asarray(y)))


def _run(factory, cohorts=federation.COHORTS, data=None, **options):
  algorithm = factory(tiny.mlp(), **(SETTINGS | options))
  first, last, seen = federation.run(algorithm, cohorts, data or _data())
  return algorithm, first.server.params, last.server, seen


@functools.cache
def _fed_avg():
  return _run(algorithms.fed_avg)[2].params


@pytest.mark.parametrize(
  "name, options",
  [
    ("hetero_fl", {}),
    ("hetero_fl", {"scaler": False, **PLAIN}),
    ("fed_rolex", {}),
    ("fed_rolex", {"by_examples": True}),
  ],
)
def test_width_sub_models_equal_the_loop(name, options):
  factory = getattr(algorithms, name)
  _, start, last, seen = _run(factory, rates=RATES, **options)
  rolling = name == "fed_rolex"
  w, down, up = oracles.hetero_fl(
    federation.weights(start),
    _data(),
    federation.COHORTS,
    rate=RATE,
    epochs=EPOCHS,
    rates=RATES,
    rolling=rolling,
    **options,
  )
  federation.assert_close(last.params, w)
  for place, k in enumerate(federation.COHORTS[-1]):
    round_number = 4 if rolling else 0
    assert seen[-1].down_bytes[place] == 4 * down[k] + round_number
    note = 1 if options.get("masked_loss", True) else 0
    assert seen[-1].up_bytes[place] == 4 * up[k] + note


@pytest.mark.parametrize(
  "name, options",
  [
    ("hetero_fl", PLAIN),
    ("fed_rolex", PLAIN),
    ("split_mix", {"bases": 1, "by_examples": True}),
  ],
)
def test_at_full_width_it_is_fed_avg(name, options):
  algorithm, _, last, _ = _run(
    getattr(algorithms, name), rates=(1.0,), **options
  )
  federation.assert_same(algorithm.global_params(last), _fed_avg())


def test_fed_rolex_begins_as_hetero_fl():
  once = federation.COHORTS[:1]
  runs = [
    _run(factory, cohorts, rates=RATES)[2].params
    for cohorts in (once, federation.COHORTS)
    for factory in (algorithms.fed_rolex, algorithms.hetero_fl)
  ]
  federation.assert_same(runs[0], runs[1])
  assert np.abs(runs[2]["first"] - runs[3]["first"]).max() > 1e-3


def test_units_that_nobody_holds_keep_their_weights_until_windows_roll():
  cohorts = [[1, 2, 3]] * tiny.HIDDEN
  options = dict(cohorts=cohorts, rates=(0.25,), **PLAIN)
  _, start, last, _ = _run(algorithms.hetero_fl, **options)
  moved = np.abs(last.params["first"] - start["first"]).max(axis=0) > 0
  np.testing.assert_array_equal(moved, np.arange(tiny.HIDDEN) < 3)
  np.testing.assert_array_equal(last.params["second"][3:], start["second"][3:])
  _, start, last, _ = _run(algorithms.fed_rolex, **options)
  assert (np.abs(last.params["first"] - start["first"]).max(axis=0) > 0).all()


def test_split_mix_equals_the_loop_and_mixes():
  bases, rates = 3, (1.0, 0.67, 0.2)
  algorithm, start, last, seen = _run(
    algorithms.split_mix, rates=rates, bases=bases
  )
  groups = np.split(np.arange(tiny.HIDDEN), bases)
  full = tiny.mlp().init(jax.random.split(federation.KEY, 3)[0])
  first, second = federation.weights(full)
  want = oracles.split_mix(
    [[first[:, g], second[g] * 3**0.5] for g in groups],
    _data(),
    federation.COHORTS,
    rate=RATE,
    epochs=EPOCHS,
    budgets=(3, 2, 1),
  )
  for g, (a, b) in zip(groups, want, strict=True):
    np.testing.assert_allclose(last.params["first"][:, g], a, 1e-4, 1e-5)
    np.testing.assert_allclose(last.params["second"][g], b, 1e-4, 1e-5)
  x = np.asarray(_data().heldout.x)
  each = [np.maximum(x @ a, 0) @ b for a, b in want]
  # clients 0, 1, 2 use 3, 2 and 1 bases
  for client, count in enumerate((3, 2, 1)):
    mixed = algorithm.predict(last, (), jnp.int32(client))
    got = tiny.mlp().apply(mixed, jnp.asarray(x))
    np.testing.assert_allclose(got, np.mean(each[:count], 0), 1e-3, 1e-4)
  federation.assert_same(
    algorithm.global_params(last), algorithm.predict(last, (), jnp.int32(0))
  )
  narrow = tiny.FEATURES * 3 + 3 * tiny.CLASSES
  budgets = np.array([3, 2, 1])[np.array(federation.COHORTS[0]) % 3]
  np.testing.assert_array_equal(seen[0].up_bytes, 4 * narrow * budgets)
  np.testing.assert_array_equal(seen[0].down_bytes, 4 * narrow * budgets + 4)


def test_split_mix_gives_each_base_an_output_bias():
  """Nothing of one base reaches another: the others' gradients are zero."""
  net = models.mlp((4,), 3, (6, 4))
  algorithm = algorithms.split_mix(
    net, (0.5,), bases=2, optimizer=optax.sgd(0.1), batch_size=4
  )
  state = algorithm.init(jax.random.key(0))
  params = jax.tree.map(lambda leaf: leaf + 0.3, state.params)
  params["Dense_2"]["bias"] = params["Dense_2"]["bias"].at[1].add(5.0)
  state = state._replace(params=params)
  x = jax.random.normal(jax.random.key(1), (5, 4))

  def narrow(i):
    """Base i with its own hidden units, as a network of half the width."""
    a, b = slice(3 * i, 3 * i + 3), slice(2 * i, 2 * i + 2)
    first, second, third = (params[f"Dense_{j}"] for j in range(3))
    h = jax.nn.relu(x @ first["kernel"][:, a] + first["bias"][None, a])
    h = jax.nn.relu(h @ second["kernel"][a, b] + second["bias"][None, b])
    return h @ third["kernel"][b] + third["bias"][None, i]

  mixed = net.apply(algorithm.global_params(state), x)
  np.testing.assert_allclose(mixed, (narrow(0) + narrow(1)) / 2, 1e-4, 1e-5)
  own = net.apply(algorithm.predict(state, (), jnp.int32(0)), x)
  np.testing.assert_allclose(own, narrow(0), 1e-4, 1e-5)


def _conv_net(channels, dense):
  convs = tuple((c, "SAME") for c in channels)
  return models.from_flax(
    _ConvNet(convs, (dense, 3), True, "he_normal", None), (8, 8, 2)
  )


NARROW = {
  "mlp": lambda half: models.mlp((8, 8, 2), 3, (8, 4) if half else (16, 8)),
  "convolutions": lambda half: (
    _conv_net((2, 3), 5) if half else _conv_net((4, 6), 10)
  ),
  "resnet": lambda half: models.resnet(
    (8, 8, 2), 3, width=2 if half else 4, norm="none"
  ),
}


@pytest.mark.parametrize("name", NARROW)
def test_a_masked_chain_is_the_narrow_network(name):
  wide, narrow = NARROW[name](False), NARROW[name](True)
  params = jax.tree.map(lambda p: p + 0.01, wide.init(jax.random.key(0)))
  chain = chain_of(wide)
  kept = [jnp.arange(units) < units // 2 for units in chain.units[:-1]]
  mask = chain.mask([*kept, jnp.ones(3, bool)])
  masked = jax.tree.map(lambda p, m: p * m.astype(p.dtype), params, mask)
  shapes = jax.eval_shape(narrow.init, jax.random.key(0))
  cut = jax.tree.map(
    lambda p, m, s: p[np.asarray(m)].reshape(s.shape), params, mask, shapes
  )
  x = jax.random.normal(jax.random.key(1), (5, 8, 8, 2))
  want = jax.jit(narrow.apply)(cut, x)
  np.testing.assert_allclose(jax.jit(wide.apply)(masked, x), want, 1e-4, 1e-5)
  assert np.std(want) > 1e-2


def test_a_chain_that_is_not_in_the_order_of_its_names():
  def init(key):
    del key
    return {"b": jnp.ones((4, 6)), "a": jnp.ones((6, 3)), "shift": jnp.ones(6)}

  model = Model(init, lambda params, x: x @ params["b"] @ params["a"])
  with pytest.raises(UserError, match="give layers= in"):
    chain_of(model)
  chain = chain_of(model, ["b", "a"])
  assert chain.units == (6, 3) and chain.layer == (1, 0, 0)
  with pytest.raises(UserError, match="name each of a, b once"):
    chain_of(model, ["b"])
  with pytest.raises(UserError, match="unknown layer 'c'"):
    chain_of(model, ["b", "c"])


def test_the_mean_over_holders_is_that_of_the_kernels_reference():
  rng = np.random.default_rng(0)
  old, n = rng.normal(size=(6, 5)), 4
  rows, cols = np.array([6, 3, 2, 4]), np.array([2, 3, 1, 3])
  weights = np.array([1.0, 2.0, 0.0, 3.0], np.float32)
  blocks = rng.normal(size=(n, 6, 5)).astype(np.float32)
  held = [
    np.add.outer(np.arange(6) >= r, np.arange(5) >= c)
    for r, c in zip(rows, cols, strict=True)
  ]
  mask = ~np.stack(held)
  messages = jax.vmap(kept_values)(jnp.asarray(blocks), jnp.asarray(mask))
  reducer = holders_mean()
  zero = reducer.zero(kept_values(jnp.zeros((6, 5)), jnp.ones((6, 5), bool)))
  got = reducer.finish(reducer.add(zero, messages, jnp.asarray(weights)))
  want = reference.overlap_mean_blocks(
    blocks, rows, cols, weights, np.zeros_like(old)
  )
  np.testing.assert_allclose(got, want, 1e-5, 1e-6)


@pytest.mark.parametrize(
  "make, message",
  [
    (
      lambda: _run(algorithms.hetero_fl, rates=(0.5, 1.2)),
      r"rates \[0.5, 1.2\]",
    ),
    (lambda: _run(algorithms.fed_rolex, rates=()), "give at least one"),
    (
      lambda: algorithms.hetero_fl(
        models.resnet((8, 8, 1), 3), (1.0,), **SETTINGS
      ),
      "'Norm_0/bias' is no bias of one layer; .* norm='none'",
    ),
    (
      lambda: _run(algorithms.split_mix, rates=(1.0,), bases=4),
      r"bases 4: .* \[9\]",
    ),
  ],
)
def test_what_does_not_fit_is_refused(make, message):
  with pytest.raises(UserError, match=message):
    make()
