"""The vision transformer against a float64 loop, its pruning, its mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from fedjax_het import models
from fedjax_het.core.errors import UserError

IMAGE, CLASSES = (6, 4, 2), 3
SIZES = {"width": 8, "layers": 2, "heads": 2, "hidden": 5}


def made(**options):
  model = models.build("vit", IMAGE, CLASSES, **SIZES, **options)
  params = model.init(jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32),
    params,
  )
  return model, params, rng.normal(size=(3, *IMAGE)).astype(np.float32)


def norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def by_loops(params, image, patch, heads=(1, 1), channels=(1,) * 5):
  """Logits of one image, one token and one head at a time."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  tall, wide = patch
  tokens = []
  for row in range(0, IMAGE[0], tall):
    for column in range(0, IMAGE[1], wide):
      pixels = image[row : row + tall, column : column + wide].reshape(-1)
      tokens.append(pixels @ p["embed"]["kernel"])
  x = np.array(tokens) + p["embed"]["position"]
  for number in range(2):
    layer = p[f"layer_{number}"]
    h = norm(x, layer["attention_norm"]["scale"])
    out = np.zeros_like(x)
    for head in range(2):
      mine = slice(4 * head, 4 * head + 4)
      q, k, v = (h @ layer[n]["kernel"][:, mine] for n in "qkv")
      for t in range(len(x)):
        share = softmax(k @ q[t] / 2)
        out[t, mine] = heads[head] * (share @ v)
    x = x + out @ layer["o"]["kernel"]
    h = norm(x, layer["mlp_norm"]["scale"])
    up = h @ layer["up"]["kernel"]
    # jax.nn.gelu is the tanh form
    up = 0.5 * up * (1 + np.tanh((2 / np.pi) ** 0.5 * (up + 0.044715 * up**3)))
    x = x + (up * np.array(channels)) @ layer["down"]["kernel"]
  x = norm(x, p["final_norm"]["scale"]).mean(0)
  return x @ p["head"]["kernel"] + p["head"]["bias"]


@pytest.mark.parametrize("patch", [None, (2, 2), (3, 4)])
def test_against_a_float64_loop(patch):
  model, params, x = made(patch=patch)
  want = [by_loops(params, image, patch or (1, 4)) for image in x]
  np.testing.assert_allclose(model.apply(params, x), want, rtol=2e-4, atol=2e-4)


def test_pruned_heads_and_channels_give_nothing():
  model, params, x = made()
  heads, channels = (0.0, 1.0), (1.0, 0.0, 0.0, 1.0, 1.0)
  for number in range(2):
    params[f"layer_{number}"] |= {
      "keep_heads": jnp.asarray(heads),
      "keep_channels": jnp.asarray(channels),
    }
  want = [by_loops(params, image, (1, 4), heads, channels) for image in x]
  np.testing.assert_allclose(model.apply(params, x), want, rtol=2e-4, atol=2e-4)


def test_parameters():
  model = models.build("vit", (28, 28, 1), 10)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  layer = 4 * 64 * 64 + 2 * 64 * 256 + 2 * 64
  count = 28 * 64 + 28 * 64 + 2 * layer + 64 + 64 * 10 + 10
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count == 102_858


@pytest.mark.parametrize(
  ("shape", "options", "message"),
  [
    ((64,), {}, "takes images"),
    ((6, 4, 2), {"patch": (4, 4)}, "do not tile 6 x 4"),
    ((6, 4, 2), {"width": 10, "heads": 4}, "multiple of 8"),
    ((6, 4, 2), {"layers": 0}, "positive sizes"),
  ],
)
def test_mistakes(shape, options, message):
  with pytest.raises(UserError, match=message):
    models.build("vit", shape, CLASSES, **options)


def test_another_shape():
  model, params, _ = made()
  with pytest.raises(UserError, match=r"takes x \[B, 6, 4, 2\]"):
    model.apply(params, jnp.zeros((1, 4, 6, 2)))
