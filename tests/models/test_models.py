"""Every model of REGISTRY: size, determinism, training, clients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_het import models
from fedjax_het.core.errors import UserError

SMALL = {  # quick to compile; every formulation of the default choice is met
  "cnn": ((8, 8, 1), {}),
  "lenet": ((12, 12, 2), {}),
  "mlp": ((4, 4, 1), {"hidden": (16, 8)}),
  "resnet": ((8, 8, 3), {"width": 8}),
  "vit": ((6, 4, 1), {"width": 8, "layers": 1, "heads": 2, "hidden": 12}),
}
every_model = pytest.mark.parametrize("name", models.REGISTRY)


def small(name, **options):
  shape, more = SMALL[name]
  return models.build(name, shape, 3, **more, **options), shape


def batch(shape, clients=()):
  rng = np.random.default_rng(0)
  y = rng.integers(0, 3, (*clients, 6))
  x = rng.standard_normal((*clients, 6, *shape)) + y.reshape(
    *y.shape, *[1] * len(shape)
  )
  return jnp.asarray(0.3 * x, jnp.float32), jnp.asarray(y, jnp.int32)


def loss(model, params, x, y):
  logits = model.apply(params, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(model, params, x, y, steps, rate):
  def step(params, _):
    value, grads = jax.value_and_grad(loss, 1)(model, params, x, y)
    return optax.apply_updates(params, optax.tree.scale(-rate, grads)), value

  return jax.lax.scan(step, params, length=steps)


def shapes(model):
  return jax.eval_shape(model.init, jax.random.key(0))


def draw(model, clients=()):
  """He-normal parameters by NumPy: `init` takes seconds to compile."""
  rng = np.random.default_rng(0)

  def leaf(path, like):
    if like.ndim > 1:
      spread = np.sqrt(2 / np.prod(like.shape[:-1]))
      value = rng.normal(0, spread, (*clients, *like.shape))
    else:
      value = np.full((*clients, *like.shape), "scale" in str(path))
    return jnp.asarray(value, jnp.float32)

  return jax.tree_util.tree_map_with_path(leaf, shapes(model))


@pytest.mark.parametrize(
  ("name", "shape", "options", "count"),
  [
    ("cnn", (28, 28, 1), {}, 1_663_370),  # McMahan et al. 2017
    ("cnn", (28, 28, 1), {"use_bias": False}, 1_663_370 - 32 - 64 - 512 - 10),
    ("lenet", (28, 28, 1), {}, 61_706),  # LeNet-5
    ("mlp", (28, 28, 1), {}, 784 * 64 + 64 + 64 * 10 + 10),
    ("mlp", (784,), {"hidden": ()}, 7_850),
    ("resnet", (32, 32, 3), {"depth": 20}, 269_722),  # He et al. 2016: 0.27M
    (  # ResNet-8: seven convolutions, their norms, dense
      "resnet",
      (32, 32, 3),
      {"norm": "group"},
      9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
      + 2 * (3 * 16 + 2 * 32 + 2 * 64)
      + 64 * 10
      + 10,
    ),
  ],
)
def test_parameter_count(name, shape, options, count):
  leaves = jax.tree.leaves(shapes(models.build(name, shape, 10, **options)))
  assert sum(leaf.size for leaf in leaves) == count


@every_model
def test_trains_deterministically_in_every_client(name):
  """The loss falls; the same under vmap over clients as one by one."""
  model, shape = small(name)
  x, y = batch(shape, (3,))
  params = draw(model, (3,))

  def client(params, x, y):
    return train(model, params, x, y, 6, 0.003)

  def one_by_one(*args):
    return jax.lax.map(lambda one: client(*one), args)

  (final, losses) = jax.jit(jax.vmap(client))(params, x, y)
  looped = jax.jit(one_by_one)
  assert losses.shape == (3, 6)
  assert np.all(losses[:, -1] < losses[:, 0])
  again, first = looped(params, x, y), looped(params, x, y)
  jax.tree.map(np.testing.assert_array_equal, again, first)
  for a, b in zip(
    jax.tree.leaves((final, losses)), jax.tree.leaves(first), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@every_model
def test_shapes_and_dtypes(name):
  model, shape = small(name)
  params = shapes(model)
  logits = jax.eval_shape(model.apply, params, batch(shape)[0])
  assert logits.shape == (6, 3)
  leaves = jax.tree.leaves((logits, params))
  assert all(leaf.dtype == jnp.float32 for leaf in leaves)


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_the_key_makes_the_parameters(name):
  init = jax.jit(small(name)[0].init)
  params, same, other = (init(jax.random.key(k)) for k in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, params, same)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
    assert a.ndim < 2 or not np.any(np.equal(a, b))


@pytest.mark.parametrize("name", [n for n in models.REGISTRY if n != "vit"])
def test_without_bias_every_leaf_is_maskable(name):
  # a transformer's norms keep their scales, of one dimension
  leaves = jax.tree.leaves(shapes(small(name, use_bias=False)[0]))
  assert min(leaf.ndim for leaf in leaves) >= 2


@pytest.mark.parametrize("name", ["lenet", "mlp"])
@pytest.mark.parametrize("weight_init", ["he_normal", "signed_constant"])
def test_weight_init(name, weight_init):
  model, _ = small(name, use_bias=False, weight_init=weight_init)
  for leaf in jax.tree.leaves(jax.jit(model.init)(jax.random.key(0))):
    scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    if weight_init == "signed_constant":
      np.testing.assert_allclose(np.abs(leaf), scale, rtol=1e-6)
      assert abs(np.mean(leaf > 0) - 0.5) < 2.5 / np.sqrt(leaf.size)
    else:
      error = 3 / np.sqrt(2 * leaf.size)
      np.testing.assert_allclose(np.std(leaf), scale, rtol=error)
      assert np.max(np.abs(leaf)) > 2 * scale  # not truncated there


def test_cnn_is_the_network_of_the_paper():
  """Against bias and relu before the pooling, in float64."""
  model, shape = small("cnn")
  params = jax.tree.map(lambda p: p + jnp.float32(0.05), draw(model))
  x, _ = batch(shape)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  y = np.asarray(x, np.float64)
  for layer in ("Conv_0", "Conv_1"):
    height, width = y.shape[1:3]
    padded = np.pad(y, ((0, 0), (2, 2), (2, 2), (0, 0)))
    y = p[layer]["bias"] + sum(
      padded[:, i : i + height, j : j + width] @ p[layer]["kernel"][i, j]
      for i in range(5)
      for j in range(5)
    )
    y = np.maximum(y, 0).reshape(6, height // 2, 2, width // 2, 2, -1)
    y = y.max((2, 4))
  y = y.reshape(6, -1) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
  y = np.maximum(y, 0) @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]
  actual = jax.jit(model.apply)(params, x)
  np.testing.assert_allclose(actual, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())


def test_norms():
  """Which examples share statistics, and that one example is enough."""
  shape = (8, 8, 3)
  x, _ = batch(shape)
  whole, one = {}, {}
  for norm in ("static", "group", "affine", "none"):
    model = models.build("resnet", shape, 3, width=8, norm=norm)
    params, apply = draw(model), jax.jit(model.apply)
    whole[norm], one[norm] = apply(params, x), apply(params, x[:1])
    assert np.all(np.isfinite(one[norm]))
    if norm in ("static", "group"):  # the scale of a layer is divided out
      scaled = {**params, "Conv_0": {"kernel": 7 * params["Conv_0"]["kernel"]}}
      np.testing.assert_allclose(
        apply(scaled, x), whole[norm], rtol=1e-2, atol=1e-2
      )
  for norm in ("group", "affine", "none"):
    np.testing.assert_allclose(whole[norm][:1], one[norm], rtol=1e-4, atol=1e-4)
  assert np.max(np.abs(whole["static"][:1] - one["static"])) > 0.1
  assert np.max(np.abs(whole["static"] - whole["group"])) > 0.1
  # fresh scale and shift do nothing, and `draw` gave both the same kernels
  np.testing.assert_allclose(whole["affine"], whole["none"], rtol=1e-4)


@pytest.mark.parametrize(
  ("name", "shape", "options", "message"),
  [
    ("cnnn", (8, 8, 1), {}, "unknown model 'cnnn': did you mean 'cnn'"),
    ("cnn", (8, 8), {}, "cnn takes images"),
    ("cnn", (2, 8, 1), {}, "2 x 2"),
    ("lenet", (8, 8, 1), {}, "does not fit"),
    ("mlp", (3,), {"hiden": (2,)}, "did you mean 'hidden'"),
    ("mlp", (), {}, "positive sizes"),
    ("mlp", (3,), {"weight_init": "he"}, "unknown weight_init"),
    ("resnet", (8, 8, 1), {"norm": "batch"}, "unknown norm"),
    ("resnet", (8, 8, 1), {"depth": 9}, "8, 14, 20"),
    ("cnn", (8, 8, 1), {"formulation": "fft"}, "unknown formulation"),
  ],
)
def test_mistakes(name, shape, options, message):
  with pytest.raises(UserError, match=message):
    models.build(name, shape, 10, **options)


def test_wrong_examples():
  model, _ = small("mlp")
  params = draw(model)
  with pytest.raises(UserError, match=r"takes x \[B, 4, 4, 1\], got \[2, 16\]"):
    model.apply(params, jnp.zeros((2, 16)))
