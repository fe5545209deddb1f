"""from_flax gives what the module itself gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_het.core.errors import UserError
from fedjax_het.models import from_flax

X = jnp.linspace(-1, 1, 8).reshape(2, 4)


class Linen(nn.Module):
  norm: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(3)(x))
    return nn.BatchNorm(use_running_average=False)(x) if self.norm else x


class Nnx(nnx.Module):
  def __init__(self, rngs, dropout=False):
    self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs) for _ in range(2)])
    self.last = nnx.Linear(5, 3, rngs=rngs)
    if dropout:
      self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.relu(sum(layer(x) for layer in self.layers)))


def test_linen():
  module, key = Linen(), jax.random.key(1)
  variables = module.init(key, X)
  model = from_flax(module, (4,))
  params = model.init(key)
  jax.tree.map(np.testing.assert_array_equal, params, variables["params"])
  np.testing.assert_array_equal(
    model.apply(params, X), module.apply(variables, X)
  )


def test_nnx_constructor():
  """The key makes the parameters; gradients are those of the module."""
  key = jax.random.key(1)
  module = Nnx(nnx.Rngs(key))
  model = from_flax(Nnx, (4,))
  params = jax.jit(model.init)(key)
  np.testing.assert_array_equal(
    params["layers/1/kernel"], module.layers[1].kernel.get_value()
  )
  np.testing.assert_allclose(model.apply(params, X), module(X), rtol=1e-6)
  ours = jax.grad(lambda p: jnp.sum(jnp.square(model.apply(p, X))))(params)
  theirs = nnx.grad(lambda m: jnp.sum(jnp.square(m(X))))(module)
  np.testing.assert_allclose(
    ours["last/kernel"], theirs["last"]["kernel"].get_value(), rtol=1e-5
  )


def test_nnx_instance_keeps_its_own_parameters():
  module = Nnx(nnx.Rngs(3))
  model = from_flax(module, (4,))
  params = model.init(jax.random.key(0))
  np.testing.assert_array_equal(model.apply(params, X), module(X))
  zero = jax.tree.map(jnp.zeros_like, params)
  np.testing.assert_array_equal(model.apply(zero, X), jnp.zeros((2, 3)))
  assert np.any(module(X) != 0)  # apply left the module alone


@pytest.mark.parametrize(
  ("module", "state"),
  [
    (Linen(norm=True), "batch_stats"),
    (lambda rngs: Nnx(rngs, dropout=True), "RngKey"),
    (lambda rngs: nnx.BatchNorm(4, rngs=rngs), "BatchStat"),
  ],
)
def test_other_state_is_refused(module, state):
  with pytest.raises(UserError, match=state):
    from_flax(module, (4,))
