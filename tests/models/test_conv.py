"""conv2d against a NumPy float64 sum over taps, in every context."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_het.core.errors import UserError
from fedjax_het.models import winograd
from fedjax_het.models.conv import FORMULATIONS, choose, conv2d
from fedjax_het.models.formulations import Geometry

FLAT = [  # image, filter, padding as pairs, strides
  ((9, 7), (3, 4), ((2, 0), (1, 3)), (1, 1)),
  ((6, 8), (5, 3), ((0, 0), (0, 0)), (1, 1)),
  ((9, 8), (3, 3), ((0, 1), (1, 1)), (2, 3)),
  ((5, 6), (1, 1), ((0, 0), (0, 0)), (2, 1)),
  ((4, 5), (2, 3), ((3, 2), (0, 4)), (1, 2)),
]


def fits(formulation, filter_, strides):
  return formulation != "winograd" or (strides == (1, 1) and min(filter_) > 2)


def oracle(x, w, g, padding, strides):
  """(y, dx, dw) in float64, by a loop over the taps."""
  x, w, g = (np.asarray(a, np.float64) for a in (x, w, g))
  padded = np.pad(x, ((0, 0), *padding, (0, 0)))
  dpadded, dw = np.zeros_like(padded), np.zeros_like(w)
  (height, width), y = g.shape[1:3], 0
  for i in range(w.shape[0]):
    for j in range(w.shape[1]):
      window = (
        slice(None),
        slice(i, i + strides[0] * (height - 1) + 1, strides[0]),
        slice(j, j + strides[1] * (width - 1) + 1, strides[1]),
      )
      y = y + padded[window] @ w[i, j]
      dpadded[window] += g @ w[i, j].T
      dw[i, j] = np.einsum("bpqi,bpqo->io", padded[window], g)
  (top, _), (left, _) = padding
  return y, dpadded[:, top:, left:][:, : x.shape[1], : x.shape[2]], dw


def operands(image, filter_, padding, strides, lead=(), channels=(3, 5)):
  out = Geometry(image, filter_, strides, padding).output
  shapes = (
    (2, *image, channels[0]),
    (*filter_, *channels),
    (2, *out, channels[1]),
  )
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.standard_normal((*lead, *s)), jnp.float32) for s in shapes
  ]


def close(actual, expected):
  for a, e in zip(actual, expected, strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=3e-5 * np.abs(e).max())


def faces(conv):
  """(x, w, g) -> (y, dx, dw)."""

  def run(x, w, g):
    y, pull = jax.vjp(conv, x, w)
    return y, *pull(g)

  return run


@pytest.mark.parametrize("case", range(len(FLAT)))
@pytest.mark.parametrize("formulation", [*FORMULATIONS, None])
def test_output_and_gradients(formulation, case):
  image, filter_, padding, strides = FLAT[case]
  if not fits(formulation, filter_, strides):
    pytest.skip("winograd: stride 1 and 3 to 5 taps")
  conv = functools.partial(
    conv2d, padding=padding, strides=strides, formulation=formulation
  )
  x, w, g = operands(*FLAT[case])
  actual = jax.jit(faces(conv))(x, w, g)
  close(actual, oracle(x, w, g, padding, strides))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_clients_with_filters_of_their_own(formulation):
  """vmap of grad, grad of vmap, a scan, shared operands, two vmaps."""
  case = FLAT[0]
  conv = functools.partial(conv2d, padding=case[2], formulation=formulation)
  x, w, g = operands(*case, lead=(4,))
  run = faces(conv)

  def everything(x, w, g):
    pairs = jax.tree.map(lambda a: a.reshape(2, 2, *a.shape[1:]), (x, w, g))
    twice = jax.vmap(jax.vmap(run))(*pairs)
    return {
      "vmap of grad": jax.vmap(run)(x, w, g),
      "grad of vmap": faces(jax.vmap(conv))(x, w, g),
      "scan": lax.map(lambda a: run(*a), (x, w, g)),
      "two vmaps": jax.tree.map(lambda a: a.reshape(4, *a.shape[2:]), twice),
      "shared filter": jax.vmap(run, (0, None, 0))(x, w[0], g),
      "shared images": jax.vmap(run, (None, 0, 0))(x[0], w, g),
      "mixed axes": jax.vmap(run, (3, 4, 0))(
        jnp.moveaxis(x, 0, 3), jnp.moveaxis(w, 0, 4), g
      ),
    }

  def expected(x, w, g):
    each = [oracle(*a, case[2], case[3]) for a in zip(x, w, g, strict=True)]
    return [np.stack(part) for part in zip(*each, strict=True)]

  result = jax.jit(everything)(x, w, g)
  shared = {
    "shared filter": (x, jnp.broadcast_to(w[0], w.shape), g),
    "shared images": (jnp.broadcast_to(x[0], x.shape), w, g),
  }
  for name, actual in result.items():
    close(actual, expected(*shared.get(name, (x, w, g))))


@pytest.mark.parametrize("formulation", ["canonical", "winograd"])
def test_second_order(formulation):
  """Hessian products, forward over reverse and reverse over reverse."""
  x, w, _ = operands((5, 6), (3, 3), ((1, 1), (1, 1)), (1, 1))

  def loss(conv, w):
    return jnp.sum(jnp.square(conv(jnp.sin(conv(x, w)), w.swapaxes(2, 3))))

  def second(conv):
    gradient = jax.grad(functools.partial(loss, conv))
    forward = jax.jvp(gradient, (w,), (jnp.cos(w),))[1]
    reverse = jax.grad(lambda w: jnp.vdot(gradient(w), jnp.cos(w)))(w)
    return forward, reverse

  plain = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  ours = functools.partial(conv2d, formulation=formulation)
  actual, expected = jax.jit(lambda: (second(ours), second(plain)))()
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-4 * np.abs(e).max())


@pytest.mark.parametrize("taps", winograd.TAPS)
def test_winograd_is_exact_before_rounding(taps):
  """y = A^T [(G w) * (B^T x)] is the correlation, in float64."""
  out, filter_, input_ = winograd.transforms(taps)
  x, w = np.random.default_rng(0).standard_normal((2, len(input_)))
  y = out @ ((filter_ @ w[:taps]) * (input_ @ x))
  np.testing.assert_allclose(y, np.correlate(x, w[:taps], "valid"), rtol=1e-12)


def test_winograd_error_is_as_documented():
  x, w, g = operands(
    (14, 14), (5, 5), ((2, 2), (2, 2)), (1, 1), channels=(32, 64)
  )
  x = jax.nn.relu(x)
  y, *_ = oracle(x, w, g, ((2, 2), (2, 2)), (1, 1))
  error = jax.jit(functools.partial(conv2d, formulation="winograd"))(x, w) - y
  assert np.sqrt(np.mean(error**2)) < 5e-6 * y.std()


def test_vmapped_clients_never_reach_a_grouped_convolution():
  def client(x, w):
    return jax.grad(lambda w: jnp.sum(conv2d(x, w)))(w)

  x, w, _ = operands((8, 8), (3, 3), ((1, 1), (1, 1)), (1, 1), lead=(4,))
  traced = jax.jit(jax.vmap(client)).trace(x, w)
  for platform in ("cpu", "cuda"):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    counts = re.findall(r"(?:batch|feature)_group_count = (\d+)", text)
    assert set(counts) <= {"1"}, platform


def test_choice():
  """The measured choice: experiments/results/bench_conv."""
  same = (2, 2), (2, 2)
  second = Geometry((14, 14), (5, 5), (1, 1), same)
  strided = second._replace(strides=(2, 2))

  def chosen(
    geometry, face="output", channels=(32, 64), dtype=jnp.float32, cpu=True
  ):
    return choose(
      face, geometry, channels, jnp.dtype(dtype), cpu=cpu, clients=True
    )

  assert chosen(second) == "winograd"
  assert chosen(second, channels=(1, 32)) == "canonical"
  assert chosen(second, dtype=jnp.bfloat16) == "canonical"
  assert chosen(second._replace(image=(1, 1))) == "canonical"  # one tile wasted
  assert chosen(strided) == "canonical"
  assert chosen(strided, face="filter") == "im2col"
  assert chosen(second, cpu=False) == "im2col"


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"formulation": "winnograd"}, "did you mean 'winograd'"),
    ({"formulation": "winograd", "strides": (2, 2)}, "stride 1"),
    ({"padding": "VALID"}, "does not fit"),
    ({"padding": ((-1, 0), (0, 0))}, "too small"),
    ({"x": jnp.zeros((1, 4, 4))}, r"\[B, H, W, I\]"),
    ({"x": jnp.zeros((1, 4, 4, 2))}, r"\[B, H, W, I\]"),
    ({"x": jnp.zeros((1, 4, 4, 3), jnp.bfloat16)}, "one dtype"),
  ],
)
def test_mistakes(change, message):
  given = {"x": jnp.zeros((1, 4, 4, 3)), "w": jnp.zeros((5, 5, 3, 2)), **change}
  with pytest.raises(UserError, match=message):
    conv2d(**given)
