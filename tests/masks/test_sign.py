"""Straight-through functions: exact values, and gradients of the stand-ins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.masks import sign

S = jnp.array([-2.0, -1.0, -0.3, -0.0, 0.0, 1e-30, 0.7, 1.0, 3.0])
STANDINS = {
  "identity": lambda s: s,
  "clip": lambda s: jnp.clip(s, -1.0000001, 1.0000001),  # ends included
  "tanh": jnp.tanh,
}


def gradient(f, s):
  weights = jnp.arange(1, s.size + 1, dtype=s.dtype)
  return jax.grad(lambda x: jnp.sum(weights * f(x)))(s)


@pytest.mark.parametrize("backward", STANDINS)
def test_sign_and_step(backward):
  up = np.asarray(S) >= 0
  signs = sign.sign_ste(S, backward)
  np.testing.assert_array_equal(signs, np.where(up, 1.0, -1.0))
  np.testing.assert_array_equal(sign.step_ste(S, backward), up * 1.0)
  for f in (sign.sign_ste, sign.step_ste):
    np.testing.assert_allclose(
      gradient(lambda s, f=f: f(s, backward), S),
      gradient(STANDINS[backward], S),
      rtol=1e-5,
    )


def test_forward_mode_jit_vmap_and_half_precision():
  rows = jnp.stack([S, -S])
  f = jax.jit(jax.vmap(lambda s: sign.sign_ste(s, "tanh")))
  np.testing.assert_array_equal(f(rows), sign.sign_ste(rows))
  value, slope = jax.jvp(sign.sign_ste, (S,), (2 * S,))
  np.testing.assert_array_equal(slope, 2 * S)
  np.testing.assert_array_equal(value, sign.sign_ste(S))
  half = S.astype(jnp.bfloat16)
  assert sign.sign_ste(half).dtype == jnp.bfloat16
  assert gradient(lambda s: sign.step_ste(s, "clip"), half).dtype == half.dtype


def test_unknown_backward_names_the_nearest():
  for f in (sign.sign_ste, sign.step_ste):
    with pytest.raises(UserError, match="did you mean 'clip'"):
      f(S, "clipp")


def test_bernoulli_samples_with_probability_sigmoid():
  draws = jax.vmap(sign.bernoulli_ste, (0, None))(
    jax.random.split(jax.random.key(0), 4000), S
  )
  assert set(np.unique(draws)) == {0, 1}
  p = 1 / (1 + np.exp(-np.asarray(S, np.float64)))
  np.testing.assert_allclose(draws.mean(0), p, atol=5 * 0.5 / np.sqrt(4000))


def test_bernoulli_passes_the_gradient_of_the_probability():
  key = jax.random.key(3)
  p = 1 / (1 + np.exp(-np.asarray(S, np.float64)))
  np.testing.assert_allclose(
    gradient(lambda s: sign.bernoulli_ste(key, s), S),
    np.arange(1, S.size + 1) * p * (1 - p),
    rtol=1e-5,
  )


def test_logit_inverts_the_sigmoid_and_stays_finite():
  s = jnp.linspace(-9, 9, 41)
  np.testing.assert_allclose(
    sign.logit_clipped(jax.nn.sigmoid(s)), s, rtol=2e-3, atol=1e-6
  )
  ends = sign.logit_clipped(jnp.array([0.0, 1.0, 0.5]), 0.01)
  np.testing.assert_allclose(
    ends, [-np.log(99), np.log(99), 0], rtol=1e-4, atol=1e-7
  )
  assert np.isfinite(sign.logit_clipped(jnp.array([0.0, 1.0]), 1e-7)).all()


def test_rescale_kept_restores_the_second_moment():
  rng = np.random.default_rng(0)
  weights = rng.normal(size=(400, 50)).astype(np.float32)
  keep = rng.random((400, 50)) < 0.1
  params = {
    "bias": jnp.ones(50),
    "kernel": jnp.asarray(weights),
    "lost": jnp.ones((2, 3)),
  }
  mask = {
    "bias": jnp.ones(50, bool),
    "kernel": jnp.asarray(keep),
    "lost": jnp.zeros((2, 3), bool),
  }
  out = jax.jit(sign.rescale_kept)(params, mask)
  np.testing.assert_allclose(
    out["kernel"], weights * keep / np.sqrt(keep.mean()), rtol=1e-6
  )
  np.testing.assert_array_equal(out["bias"], np.ones(50))
  np.testing.assert_array_equal(out["lost"], np.zeros((2, 3)))
  x = rng.normal(size=(1000, 400)).astype(np.float32)
  spread = np.std(x @ np.asarray(out["kernel"])) / np.std(x @ weights)
  assert spread == pytest.approx(1, abs=0.05)
