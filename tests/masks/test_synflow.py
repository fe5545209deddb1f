"""SynFlow against the textbook in float64 NumPy; range, collapse, seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Model
from fedjax_het.masks import budgets, synflow, tree


def layer(i):
  return f"layer_{i:02}"  # sorts like the chain


class Mlp(nn.Module):
  widths: tuple[int, ...]
  kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()

  @nn.compact
  def __call__(self, x):
    for i, width in enumerate(self.widths):
      x = nn.relu(x) if i else x
      x = nn.Dense(width, kernel_init=self.kernel_init, name=layer(i))(x)
    return x


class ConvNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    for width in (8, 16):
      x = nn.relu(nn.Conv(width, (3, 3))(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Dense(32)(x.reshape(x.shape[0], -1)))
    return nn.Dense(10)(x)


class Residual(nn.Module):
  """Widths stay the same, so that x + f(x) has no projection."""

  width: int
  blocks: int

  @nn.compact
  def __call__(self, x):
    dense = [
      nn.Dense(self.width, name=layer(i)) for i in range(2 * self.blocks)
    ]
    for first, second in zip(dense[::2], dense[1::2], strict=True):
      x = x + second(nn.relu(first(x)))
    return nn.Dense(3, name=layer(len(dense)))(x)


def model_of(net, *shape):
  example = jnp.zeros((1, *shape))
  return Model(lambda key: net.init(key, example), net.apply)


def deep_model(depth, width):
  """A chain of square layers under one scan, which compiles fast."""

  def init(key):
    normal = nn.initializers.he_normal()
    return {
      layer(i): normal(k, (width, width))
      for i, k in enumerate(jax.random.split(key, depth))
    }

  def apply(params, x):
    kernels = jnp.stack([params[layer(i)] for i in range(depth)])
    return jax.lax.scan(lambda x, w: (nn.relu(x @ w), None), x, kernels)[0]

  return Model(init, apply)


def matrices(params):
  """Float64 kernels of a chain of dense layers, input first."""
  return [np.array(k, np.float64) for k in tree.layers(params).values()]


def chain_scores(weights):
  """Textbook scores w * dR/dw / R of |W_1| ... |W_L|, by hand."""
  weights = [np.abs(w) for w in weights]
  ahead = [np.ones(weights[0].shape[0])]
  for w in weights:
    ahead.append(ahead[-1] @ w)
  back = [np.ones(weights[-1].shape[1])]
  for w in reversed(weights):
    back.append(w @ back[-1])
  back.reverse()
  return [
    w * np.outer(ahead[i], back[i + 1]) / ahead[-1].sum()
    for i, w in enumerate(weights)
  ]


def textbook(weights, density, iterations, score=chain_scores):
  """Algorithm 1 of the paper in float64: (kept bool[P], last scores f64[P])."""
  sizes = [w.size for w in weights]
  kept = np.ones(sum(sizes), bool)
  for i in range(1, iterations + 1):
    parts = np.split(kept, np.cumsum(sizes)[:-1])
    masked = [
      w * part.reshape(w.shape) for w, part in zip(weights, parts, strict=True)
    ]
    flat = np.concatenate([s.ravel() for s in score(masked)])
    keep = round(density ** (i / iterations) * kept.size)
    best = np.argsort(np.where(kept, -flat, 1), kind="stable")[:keep]
    kept = np.zeros_like(kept)
    kept[best] = True
  return kept, flat


def assert_same_ranking(mask, kept, flat):
  """Equal up to weights whose float64 scores tie within float32's accuracy."""
  found = np.asarray(tree.ravel(mask))
  assert found.sum() == kept.sum()
  differ = found != kept
  edge = flat[kept].min()
  np.testing.assert_allclose(flat[differ], edge, rtol=1e-4)
  assert differ.sum() <= 2


def prune(model, shape, density, iterations=100):
  """jit(synflow) as a function of (params, key)."""
  return jax.jit(
    lambda params, key: synflow.synflow(
      model, params, shape, density=density, iterations=iterations, key=key
    )
  )


@pytest.mark.parametrize(("density", "iterations"), [(0.3, 1), (0.06, 100)])
def test_mask_equals_the_textbook_in_float64(density, iterations):
  model = model_of(Mlp((24, 16, 10)), 30)
  params = model.init(jax.random.key(0))
  mask, scores = prune(model, (30,), density, iterations)(
    params, jax.random.key(1)
  )
  kept, flat = textbook(matrices(params), density, iterations)
  assert_same_ranking(mask, kept, flat)
  np.testing.assert_allclose(tree.ravel(scores), flat, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e2])
def test_sixty_layers_rank_as_in_float64_though_flow_leaves_float32(scale):
  """R is about 1e42, 1e-137 and 1e162."""
  model = deep_model(60, 32)
  params = jax.tree.map(
    lambda p: p * jnp.float32(scale), model.init(jax.random.key(0))
  )
  weights = matrices(params)
  total = np.ones(32)
  for w in weights:
    total = total @ np.abs(w)
  assert not 1e-38 < total.sum() < 1e38
  mask, scores = prune(model, (32,), 0.2, 20)(params, jax.random.key(1))
  kept, flat = textbook(weights, 0.2, 20)
  found = np.asarray(tree.ravel(mask))
  assert found.sum() == kept.sum()
  # Near ties are common among 60,000 scores: allow a few to swap.
  assert (found != kept).sum() <= 6
  np.testing.assert_allclose(
    np.asarray(tree.ravel(scores))[found & kept], flat[found & kept], rtol=1e-2
  )


@pytest.mark.parametrize(
  ("depth", "width", "density", "iterations"),
  [(20, 512, 0.02, 4), (80, 48, 0.03, 20)],
)
def test_deep_networks_stay_finite_and_connected(
  depth, width, density, iterations
):
  """Among few survivors the mean gain of a layer says little about the flow."""
  model = deep_model(depth, width)
  params = model.init(jax.random.key(0))
  mask, scores = prune(model, (width,), density, iterations)(
    params, jax.random.key(1)
  )
  assert np.isfinite(tree.ravel(scores)).all()
  assert bool(tree.no_layer_empty(mask))
  assert int(tree.num_kept(mask)) == budgets.surviving(params, density)
  np.testing.assert_allclose(
    [s.sum() for s in tree.layers(scores).values()], np.ones(depth), rtol=1e-4
  )


@pytest.mark.parametrize(
  ("net", "shape"),
  [(Mlp((128, 64, 10)), (784,)), (ConvNet(), (16, 16, 3))],
  ids=["mlp", "conv"],
)
def test_layers_conserve_flow_and_none_collapses(net, shape):
  model = model_of(net, *shape)
  params = model.init(jax.random.key(0))
  scores = synflow.flow(model, params, shape)
  each = [float(s.sum()) for s in tree.layers(scores).values()]
  np.testing.assert_allclose(each, 1, rtol=1e-4)

  prune_one = prune(model, shape, 0.02)
  masks, last = jax.vmap(prune_one)(
    jax.vmap(model.init)(jax.random.split(jax.random.key(1), 3)),
    jax.random.split(jax.random.key(2), 3),
  )
  assert jax.vmap(tree.no_layer_empty)(masks).all()
  nz = budgets.surviving(params, 0.02)
  np.testing.assert_array_equal(jax.vmap(tree.num_kept)(masks), [nz] * 3)
  for s in jax.tree.leaves(jax.vmap(tree.layers)(last)):
    np.testing.assert_allclose(s.reshape(3, -1).sum(1), 1, rtol=1e-4)
  # something still flows from the input to an output
  one = jax.tree.map(lambda m: m[0], masks)
  left = tree.apply_mask(jax.tree.map(jnp.abs, params), one)
  assert float(model.apply(left, jnp.ones((1, *shape))).sum()) > 0


def test_skip_connections_rank_as_in_float64():
  """No per-layer homogeneity here: the pass must not be rescaled."""
  model = model_of(Residual(12, 3), 12)
  params = model.init(jax.random.key(0))

  def output(weights):
    x = np.ones(12)
    for b in range(3):
      x = x + (x @ np.abs(weights[2 * b])) @ np.abs(weights[2 * b + 1])
    return (x @ np.abs(weights[6])).sum()

  def score(weights):
    """R is linear in every single weight: w * dR/dw = R - R(w = 0)."""
    whole, out = output(weights), []
    for w in weights:
      part = np.zeros_like(w)
      for i in np.ndindex(w.shape):
        if w[i]:
          old, w[i] = w[i], 0.0
          part[i] = (whole - output(weights)) / whole
          w[i] = old
      out.append(part)
    return out

  mask, scores = prune(model, (12,), 0.2, 4)(params, jax.random.key(1))
  kept, flat = textbook(matrices(params), 0.2, 4, score)
  assert_same_ranking(mask, kept, flat)
  np.testing.assert_allclose(
    tree.ravel(scores), flat, rtol=1e-3, atol=1e-3 * flat.max()
  )


def test_signed_constants_tie_and_still_give_an_exact_density():
  def signed_constant(key, shape, dtype=jnp.float32):
    return jax.random.rademacher(key, shape, dtype) * jnp.sqrt(2 / shape[-2])

  model = model_of(Mlp((40, 20, 10), signed_constant), 50)
  params = model.init(jax.random.key(0))
  run = prune(model, (50,), 0.2, 10)
  first, _ = run(params, jax.random.key(1))
  again, _ = run(params, jax.random.key(1))
  other, _ = run(params, jax.random.key(2))
  assert int(tree.num_kept(first)) == round(0.2 * 3000)
  assert bool(tree.no_layer_empty(first))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert (tree.ravel(first) != tree.ravel(other)).any()


def test_pruned_weights_never_return_even_where_nothing_flows():
  """50 -> 1 -> 60 units, equal weights: two steps prune the whole last layer.

  The 50 inputs of the middle unit score 1/50 each and its 60 outputs 1/60, so
  step 1 keeps 49 inputs and no output; then nothing flows and all tie at 0.
  """
  model = model_of(Mlp((1, 60), nn.initializers.ones), 50)
  params = model.init(jax.random.key(0))
  mask, scores = prune(model, (50,), 0.2, 2)(params, jax.random.key(1))
  kept = [int(m.sum()) for m in tree.layers(mask).values()]
  assert kept == [22, 0]
  np.testing.assert_array_equal(tree.ravel(scores), np.zeros(110))


def test_signs_do_not_matter():
  model = model_of(Mlp((16, 10)), 20)
  params = model.init(jax.random.key(0))
  run = prune(model, (20,), 0.2, 10)
  flipped = jax.tree.map(jnp.negative, params)
  jax.tree.map(
    np.testing.assert_array_equal,
    run(params, jax.random.key(1))[0],
    run(flipped, jax.random.key(1))[0],
  )


def test_vmap_over_seeds_equals_a_loop():
  model = model_of(Mlp((24, 10)), 30)
  keys = jax.random.split(jax.random.key(0), 3)
  many = jax.vmap(model.init)(keys)
  run = prune(model, (30,), 0.1, 20)
  together, _ = jax.vmap(run)(many, keys)
  for i in range(3):
    alone, _ = run(jax.tree.map(lambda p, i=i: p[i], many), keys[i])
    jax.tree.map(
      lambda t, a, i=i: np.testing.assert_array_equal(t[i], a), together, alone
    )


@pytest.mark.parametrize(
  ("density", "iterations", "message"),
  [(0.002, 100, "layer_02"), (1.5, 100, r"\(0, 1\]"), (0.5, 0, "below 1")],
)
def test_wrong_requests_are_user_errors(density, iterations, message):
  model = model_of(Mlp((16, 16, 10)), 784)
  with pytest.raises(UserError, match=message):
    synflow.synflow(
      model,
      model.init(jax.random.key(0)),
      (784,),
      density=density,
      iterations=iterations,
      key=jax.random.key(1),
    )
