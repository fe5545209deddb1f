"""Gradient inversion: the local program, its gradient, and what it finds."""

import functools

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import tiny

from fedjax_het.algorithms import _gradient_inversion as inversion
from fedjax_het.algorithms import fed_avg
from fedjax_het.algorithms._gradient_inversion import Search, Synthetic
from fedjax_het.core.cohort import client_data
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Model

SEARCH = Search(tiny.INPUT_SHAPE, tiny.CLASSES, box=(-4.0, 4.0), size=8)


def _tanh() -> Model:
  """A smooth network: finite differences need one."""

  def apply(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"]

  return Model(tiny.mlp().init, apply)


def _linear() -> Model:
  """Softmax regression: the bias tells the labels, the weights the inputs."""

  def init(key):
    w = jax.random.normal(key, (tiny.FEATURES, tiny.CLASSES)) * 0.1
    return {"w": w, "b": jnp.zeros(tiny.CLASSES)}

  return Model(init, lambda params, x: x @ params["w"] + params["b"][None])


def test_with_hard_labels_the_program_is_the_clients_own():
  """And equals a NumPy loop, at any number of steps."""
  data, rate, epochs = tiny.data(), 0.2, 4
  params = tiny.mlp().init(jax.random.key(0))
  x, y = oracles.client_arrays(data, 3)
  hard = Synthetic(
    jnp.asarray(x, jnp.float32), 60.0 * jax.nn.one_hot(y, tiny.CLASSES)
  )
  program = inversion.full_batch_sgd(tiny.mlp(), rate=rate, epochs=epochs)
  want = federation.weights(params)
  for steps in range(epochs + 1):
    got = jax.jit(program)(params, hard, jnp.int32(steps))
    federation.assert_close(got, want, rtol=1e-5)
    _, grads = oracles.loss_and_grad(*want, x, y)
    want = [w - rate * g for w, g in zip(want, grads, strict=True)]
  algorithm = fed_avg(
    tiny.mlp(), optimizer=optax.sgd(rate), batch_size=32, epochs=epochs
  )
  upload = algorithm.client(
    params, (), client_data(data, jnp.int32(3)), jax.random.key(1)
  )
  moved = jax.tree.map(
    lambda end, start: end - start,
    program(params, hard, jnp.int32(epochs)),
    params,
  )
  federation.assert_same(moved, upload.message)


def test_gradient_of_the_program_against_finite_differences():
  """In inputs and in label logits, through five steps, in float64."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    wide = jax.tree.map(
      lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 3),
      jax.eval_shape(_tanh().init, jax.random.key(0)),
    )
    data = Synthetic(
      jnp.asarray(rng.normal(size=(4, tiny.FEATURES))),
      jnp.asarray(rng.normal(size=(4, tiny.CLASSES))),
    )
    toward = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape)), wide)
    program = inversion.full_batch_sgd(_tanh(), rate=0.5, epochs=5)

    def value(data):
      end = program(wide, data, jnp.int32(5))
      return sum(jnp.vdot(end[name], toward[name]) for name in end)

    grads = jax.grad(value)(data)
    for name in ("x", "logits"):
      way = jnp.asarray(rng.normal(size=getattr(data, name).shape))
      ends = [
        value(data._replace(**{name: getattr(data, name) + s * 1e-5 * way}))
        for s in (1, -1)
      ]
      slope = (ends[0] - ends[1]) / 2e-5
      got = jnp.vdot(getattr(grads, name), way)
      assert abs(slope) > 1e-3
      np.testing.assert_allclose(got, slope, rtol=1e-6)


@pytest.fixture(scope="module")
def stale():
  """A client of one example; meanwhile the others taught classes 1 and 2.

  Returns:
    (program, base, now, late update, fresh update, what the client holds).
  """
  model, five = _linear(), jnp.int32(5)
  program = inversion.full_batch_sgd(model, rate=0.05, epochs=5)
  rng = np.random.default_rng(2)
  centre = rng.normal(size=(tiny.CLASSES, tiny.FEATURES))

  def examples(labels):
    labels = np.array(labels)
    x = centre[labels] + 0.5 * rng.normal(size=(labels.size, tiny.FEATURES))
    return Synthetic(
      jnp.asarray(x, jnp.float32), 60.0 * jax.nn.one_hot(labels, tiny.CLASSES)
    )

  base = now = model.init(jax.random.key(3))
  others, held = examples([1] * 8 + [2] * 8), examples([0])
  for _ in range(20):
    now = program(now, others, five)
  late, fresh = (
    jax.tree.map(jnp.subtract, program(start, held, five), start)
    for start in (base, now)
  )
  return program, base, now, late, fresh, held


@functools.cache
def _compiled(program, search):
  def run(base, now, late, start):
    five = jnp.int32(5)
    found, error = inversion.invert(program, search, base, late, five, start)
    return (
      found,
      error,
      jax.tree.map(jnp.subtract, program(now, found, five), now),
    )

  return jax.jit(run)


def _invert(stale, search, start=None, **changes):
  """(D_rec, its error, what its training gives from today's model)."""
  program, base, now, late, *_ = stale
  search = search._replace(**changes)
  start = start or inversion.draw(search, jax.random.key(0))
  found, error, redone = _compiled(program, search)(base, now, late, start)
  return found, float(error), redone


def _distance(a, b):
  """|a - b|_1 / |b|_1 over all tensors in float64."""
  a, b = (
    np.concatenate([np.asarray(tree[k], np.float64).ravel() for k in "bw"])
    for tree in (a, b)
  )
  return np.abs(a - b).sum() / np.abs(b).sum()


@pytest.mark.parametrize("signed", [True, False])
def test_a_linear_clients_update_is_recovered(stale, signed):
  """One example: the bias gives p - y, the weights x, so D_rec is unique."""
  program, base, _, late, fresh, held = stale
  found, error, redone = _invert(
    stale, SEARCH, size=1, iterations=1500, signed=signed
  )
  redo = jax.tree.map(jnp.subtract, program(base, found, jnp.int32(5)), base)
  assert error == pytest.approx(_distance(redo, late), abs=1e-5)
  assert error < 0.01
  # better than to do nothing with the late update: that is the method's point
  assert _distance(late, fresh) > 0.2
  assert _distance(redone, fresh) < 0.1 * _distance(late, fresh)
  # and this is its price: the server now holds the client's example
  np.testing.assert_allclose(found.x, held.x, atol=0.1)
  assert jax.nn.softmax(found.logits)[0, 0] > 0.9


def test_more_iterations_and_a_warm_start_fit_better(stale):
  first, few, _ = _invert(stale, SEARCH, iterations=20)
  _, many, _ = _invert(stale, SEARCH, iterations=400)
  _, warm, _ = _invert(stale, SEARCH, first, iterations=20)
  assert many < 0.5 * few
  assert warm < few


def test_inputs_stay_in_the_box(stale):
  found, _, _ = _invert(stale, SEARCH, iterations=30, step=1.0, box=(-0.3, 0.2))
  x = np.asarray(found.x)
  assert x.min() == pytest.approx(-0.3) and x.max() == pytest.approx(0.2)


def test_the_objective_looks_at_the_largest_entries_only():
  """Of two tensors together; the reported error is of all entries."""
  delta = {
    "a": jnp.asarray([[0.1, -3.0], [0.2, 0.0]]),
    "b": jnp.asarray([2.0, -0.05]),
  }
  chosen = inversion._largest(delta, 2 / 6)
  np.testing.assert_array_equal(chosen["a"], [[0, 1], [0, 0]])
  np.testing.assert_array_equal(chosen["b"], [1, 0])
  whole = inversion._largest(delta, 1.0)
  assert all(bool(jnp.all(leaf == 1)) for leaf in whole.values())


def test_a_restricted_search_ignores_the_other_entries(stale):
  """A huge change of the smallest entries changes nothing that is found."""
  program, base, now, late, fresh, _ = stale
  sizes = jnp.sort(jnp.abs(late["w"]).ravel())
  small = jnp.abs(late["w"]) < sizes[12]
  other = late | {"w": jnp.where(small, -0.9 * late["w"], late["w"])}
  found = [
    _invert((program, base, now, target), SEARCH, iterations=25, share=0.5)[0]
    for target in (late, other)
  ]
  federation.assert_same(*found)
  whole = [
    _invert((program, base, now, target), SEARCH, iterations=25)[0]
    for target in (late, other)
  ]
  assert np.abs(np.asarray(whole[0].x - whole[1].x)).max() > 0.1


def test_step_size_falls_at_three_five_and_seven_eighths():
  at = [int(inversion._decays(jnp.int32(i), 16)) for i in range(16)]
  assert at == [0] * 6 + [1] * 4 + [2] * 4 + [3] * 2


def test_vmap_is_one_after_the_other(stale):
  program, base, _, late, *_ = stale
  search = SEARCH._replace(iterations=5)
  keys = jax.random.split(jax.random.key(5), 3)
  starts = jax.vmap(lambda key: inversion.draw(search, key))(keys)
  deltas = jax.tree.map(lambda d: jnp.stack([d, 2 * d, -d]), late)

  def one(delta, start):
    return inversion.invert(program, search, base, delta, jnp.int32(5), start)

  one = jax.jit(one)
  together = jax.vmap(one)(deltas, starts)
  for i in range(3):
    pick = jax.tree.map(lambda leaf, i=i: leaf[i], (deltas, starts, together))
    federation.assert_same(one(*pick[:2]), pick[2], rtol=1e-4, atol=1e-5)


def test_an_update_of_nothing_has_no_error(stale):
  program, base, *_ = stale
  zero = jax.tree.map(jnp.zeros_like, base)
  search = SEARCH._replace(iterations=2)
  _, error = inversion.invert(
    program,
    search,
    base,
    zero,
    jnp.int32(0),
    inversion.draw(search, jax.random.key(0)),
  )
  assert float(error) == 0
  assert float(inversion.relative_error(zero, zero)) == 0


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"box": (1.0, 1.0)}, "holds nothing"),
    ({"size": 0}, "size must be >= 1"),
    ({"iterations": 0}, "iterations must be >= 1"),
    ({"share": 0.0}, "above 0"),
    ({"share": 1.5}, "at most 1"),
  ],
)
def test_mistakes_are_named(changes, message):
  with pytest.raises(UserError, match=message):
    inversion.check_search(SEARCH._replace(**changes))
