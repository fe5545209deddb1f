"""The transformer against a NumPy float64 loop over documents and heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.models.transformer import (
  Shape,
  Tokens,
  dense_attention,
  transformer,
)

SWIGLU = Shape(
  vocabulary=11,
  width=12,
  layers=2,
  heads=4,
  kv_heads=2,
  head_width=6,
  hidden=10,
)
GELU = SWIGLU._replace(mlp="gelu", tied=False, layers=1, kv_heads=4)
LENGTHS = 7, 1, 4


def parameters(shape):
  """Random everywhere, so that every norm and bias counts."""
  like = jax.eval_shape(transformer(shape).init, jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(0.3, 0.5, leaf.shape), jnp.float32),
    like,
  )


def packed_row(lengths=LENGTHS, padding=3, seed=0):
  rng = np.random.default_rng(seed)
  total = sum(lengths) + padding
  token = rng.integers(0, 11, total).astype(np.int32)
  segment, position = np.zeros((2, total), np.int32)
  starts = np.cumsum([0, *lengths])
  for i, length in enumerate(lengths):
    segment[starts[i] : starts[i + 1]] = i + 1
    position[starts[i] : starts[i + 1]] = np.arange(length)
  return Tokens(
    token, np.roll(token, -1), segment, position, (segment > 0) * np.float32(1)
  )


def norm64(x, scale):
  return scale * x / np.sqrt((x**2).mean() + 1e-6)


def gelu64(x):  # the tanh form
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotate64(x, position, base):
  """Channel pairs as complex numbers, turned."""
  half = x.size // 2
  angle = position * base ** (-np.arange(half) / half)
  turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
  return np.concatenate([turned.real, turned.imag])


def logits64(shape, params, document):
  """One document, token by token and head by head."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = [p["embed"]["embedding"][token] for token in document]
  size = shape.head_width
  for number in range(shape.layers):
    layer = p[f"layer_{number}"]
    keys, values, out = [], [], []
    for t, row in enumerate(x):
      h = norm64(row, layer["attention_norm"]["scale"])
      q, k, v = (
        (h @ layer[name]["kernel"]).reshape(-1, size)
        for name in ("q", "k", "v")
      )
      keys.append([rotate64(head, t, shape.rope_base) for head in k])
      values.append(v)
      heads = []
      for n, head in enumerate(q):
        g = n // (shape.heads // shape.kv_heads)
        head = rotate64(head, t, shape.rope_base)
        scores = np.array([head @ key[g] for key in keys]) / np.sqrt(size)
        share = np.exp(scores - scores.max())
        share /= share.sum()
        heads.append(sum(s * v[g] for s, v in zip(share, values, strict=True)))
      out.append(row + np.concatenate(heads) @ layer["o"]["kernel"])
    x = []
    for row in out:
      h = norm64(row, layer["mlp_norm"]["scale"])
      up = h @ layer["up"]["kernel"]
      if shape.mlp == "gelu":
        up = gelu64(up)
      else:
        gate = h @ layer["gate"]["kernel"]
        up = gate / (1 + np.exp(-gate)) * up
      x.append(row + up @ layer["down"]["kernel"])
  x = np.stack([norm64(row, p["final_norm"]["scale"]) for row in x])
  head = p["embed"]["embedding"].T if shape.tied else p["head"]["kernel"]
  return x @ head


@pytest.mark.parametrize("shape", [SWIGLU, GELU], ids=["swiglu", "gelu"])
def test_packed_documents_are_documents_alone(shape):
  model, params, row = transformer(shape), parameters(shape), packed_row()
  got = jax.jit(lambda *a: model.packed(*a, dense_attention))(params, row)
  assert got.shape == (sum(LENGTHS) + 3, 11) and got.dtype == jnp.float32
  assert np.isfinite(got).all()
  start = 0
  for length in LENGTHS:
    document = row.token[start : start + length]
    want = logits64(shape, params, document)
    part = got[start : start + length]
    np.testing.assert_allclose(part, want, rtol=2e-5, atol=2e-5)
    start += length


def test_rows_are_documents_and_their_ends_may_be_padding():
  model, params = transformer(SWIGLU), parameters(SWIGLU)
  x = np.random.default_rng(1).integers(0, 11, (2, 6)).astype(np.int32)
  padded = np.concatenate([x, np.full((2, 3), 5, np.int32)], 1)
  apply = jax.jit(model.apply)
  got = apply(params, padded)
  assert got.shape == (2, 9, 11)
  np.testing.assert_allclose(got[:, :6], apply(params, x), rtol=1e-5, atol=1e-5)
  want = logits64(SWIGLU, params, x[1])
  np.testing.assert_allclose(got[1, :6], want, rtol=2e-5, atol=2e-5)


def test_remat_changes_no_gradient():
  params, row = parameters(GELU), packed_row()

  def gradient(remat):
    def loss(params):
      model = transformer(GELU, remat=remat)
      logits = model.packed(params, row, dense_attention)
      return jnp.sum(jnp.square(logits) * row.weight[:, None])

    return jax.jit(jax.grad(loss))(params)

  again, want = (jax.tree.leaves(gradient(remat)) for remat in (True, False))
  for a, b in zip(again, want, strict=True):
    assert np.isfinite(b).all()
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(
  ("shape", "count"),
  [
    (Shape(), 256 * 64 + 2 * (64 * 96 + 64 * 64 + 3 * 64 * 128 + 128) + 64),
    (GELU, 2 * 11 * 12 + 4 * 12 * 24 + 2 * 12 * 10 + 3 * 12),
  ],
)
def test_parameters(shape, count):
  params = jax.jit(transformer(shape).init)(jax.random.key(3))
  leaves = jax.tree.leaves(params)
  assert sum(leaf.size for leaf in leaves) == count
  # what a mask may touch has two dimensions, norms have one
  assert all((leaf.ndim == 1) == bool((leaf == 1).all()) for leaf in leaves)
  logits = transformer(shape).apply(params, jnp.arange(10)[None])
  assert 0.3 < np.std(logits) < 3


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"kv_heads": 3}, "4 heads over 3 key-value heads"),
    ({"head_width": 5}, "head_width 5"),
    ({"mlp": "swigl"}, "did you mean 'swiglu'"),
    ({"layers": 0}, "positive sizes"),
  ],
)
def test_mistakes(changed, message):
  with pytest.raises(UserError, match=message):
    transformer(SWIGLU._replace(**changed))


def test_mistakes_with_rows():
  params = parameters(SWIGLU)
  with pytest.raises(UserError, match=r"x \[B, T\], got \[5\]"):
    transformer(SWIGLU).apply(params, jnp.zeros(5, jnp.int32))
