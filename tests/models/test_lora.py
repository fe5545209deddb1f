"""Adapters beside matrices, adapters in their place, and mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het import models
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Model
from fedjax_het.models.transformer import Shape, transformer

IMAGE = (6, 5, 2)


def filled(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), tree
  )


def small_vit():
  return models.build(
    "vit", IMAGE, 3, width=8, layers=2, heads=2, hidden=12
  ), jax.random.normal(jax.random.key(1), (4, *IMAGE))


def small_text():
  shape = Shape(
    vocabulary=11, width=8, heads=4, kv_heads=2, head_width=2, hidden=6
  )
  model = transformer(shape)
  x = jax.random.randint(jax.random.key(1), (4, 7), 0, 11)
  return Model(model.init, model.apply), x


def small_mlp():
  model = models.build("mlp", IMAGE, 3, hidden=(7,))
  return model, jax.random.normal(jax.random.key(1), (4, *IMAGE))


@pytest.mark.parametrize(
  ("make", "targets", "full"),
  [
    (small_vit, ("q", "v", "down"), ("head",)),
    (small_text, ("q", "gate", "o"), ()),
    (small_mlp, ("Dense_0",), ("Dense_1",)),
  ],
)
def test_adapters_add_their_product_to_the_kernel(make, targets, full):
  model, x = make()
  adapted = models.adapt(model, rank=3, targets=targets, full=full, alpha=6.0)
  frozen, trained = adapted.init(jax.random.key(2))
  start = adapted.merge(frozen, trained)
  jax.tree.map(
    np.testing.assert_array_equal,
    start,
    model.init(jax.random.split(jax.random.key(2))[0]),
  )
  np.testing.assert_array_equal(
    model.apply(adapted.join(frozen, trained), x), model.apply(start, x)
  )
  trained = filled(trained)
  got = model.apply(adapted.join(frozen, trained), x)
  # by hand: W + (6 / 3) A B, one matrix at a time
  by_hand = {**frozen, **trained["full"]}
  for name, adapter in trained["lora"].items():
    product = np.asarray(adapter["a"]) @ np.asarray(adapter["b"])
    by_hand[f"{name}/kernel"] = by_hand[f"{name}/kernel"] + 2 * product
  want = jax.tree.map_with_path(
    lambda path, _: by_hand[
      jax.tree_util.keystr(path, simple=True, separator="/")
    ],
    start,
  )
  want = model.apply(want, x)
  assert np.abs(want - model.apply(start, x)).max() > 0.1
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  merged = model.apply(adapted.merge(frozen, trained), x)
  np.testing.assert_allclose(merged, want, rtol=1e-5, atol=1e-5)


def test_what_is_trained_and_what_is_frozen():
  model, _ = small_vit()
  adapted = models.adapt(model, rank=2)
  frozen, trained = adapted.init(jax.random.key(0))
  names = {f"layer_{i}/{m}" for i in range(2) for m in "qv"}
  assert set(trained["lora"]) == names
  assert set(trained["full"]) == {"head/kernel", "head/bias"}
  assert not set(frozen) & set(trained["full"])
  a = [adapter["a"] for adapter in trained["lora"].values()]
  assert all(leaf.shape == (8, 2) for leaf in a)
  assert not np.array_equal(a[0], a[1])
  assert all(not np.any(ad["b"]) for ad in trained["lora"].values())


def test_a_pretrained_base_is_kept():
  model, _ = small_mlp()
  base = filled(model.init(jax.random.key(0)))
  adapted = models.adapt(
    model, rank=1, targets=("Dense_0",), full=(), base=base
  )
  frozen, trained = adapted.init(jax.random.key(9))
  jax.tree.map(
    np.testing.assert_array_equal, adapted.join(frozen, trained), base
  )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"rank": 0}, "rank of 0"),
    ({"rank": 1, "targets": ("dow",)}, "did you mean 'down'"),
    ({"rank": 1, "targets": ("embed",)}, "unknown LoRA target"),
    ({"rank": 1, "full": ("haed",)}, "did you mean 'head'"),
    ({"rank": 1, "targets": ("q",), "full": ("layer_0",)}, "layer_0/q: adapt"),
    ({"rank": 1, "base": {"a": np.ones(3)}}, "not those of this model"),
  ],
)
def test_mistakes(options, message):
  model, _ = small_vit()
  with pytest.raises(UserError, match=message):
    models.adapt(model, **options)
