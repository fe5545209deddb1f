"""Which parameters stay with the client."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_het import algorithms, models
from fedjax_het.algorithms import _memory, _parts
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import ClientData

SETTINGS = dict(optimizer=optax.sgd(0.1), batch_size=8)


def _names(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree.leaves_with_path(tree)
  }


@pytest.mark.parametrize(
  "personal, want",
  [
    ((), set()),
    (("second",), {"second"}),
    ("second", {"second"}),
    (("first", "shift"), {"first", "shift"}),
    (lambda name: name.startswith("s"), {"second", "shift"}),
  ],
)
def test_parts_are_chosen_by_name_and_join_again(personal, want):
  model = tiny.mlp(bias=True)
  params = model.init(jax.random.key(0))
  parts = _parts.by_name(model, personal)
  shared, own = parts.split(params)
  assert _names(own) == want
  assert _names(shared) == {"first", "second", "shift"} - want
  jax.tree.map(np.testing.assert_array_equal, parts.join(shared, own), params)
  assert parts.any_personal == bool(want)


def test_nested_names_are_paths():
  model = models.mlp((4,), 3, hidden=(5,))
  shared, own = _parts.by_name(model, ("Dense_1",)).split(
    model.init(jax.random.key(0))
  )
  assert _names(own) == {"Dense_1/kernel", "Dense_1/bias"}
  assert _names(shared) == {"Dense_0/kernel", "Dense_0/bias"}


@pytest.mark.parametrize("name", ["fed_per", "lg_fed_avg", "fed_rep", "fed_bn"])
@pytest.mark.parametrize(
  "personal, match",
  [
    (("secnd",), "did you mean 'second'"),
    (lambda name: False, r"none of the parameters first, second.*\(\)"),
    (lambda name: True, "local_only"),
    (("first", "second"), "nothing to share"),
  ],
)
def test_wrong_choices_are_named(name, personal, match):
  with pytest.raises(UserError, match=match):
    getattr(algorithms, name)(tiny.mlp(), personal=personal, **SETTINGS)


@pytest.mark.parametrize(
  "name, norm",
  [
    ("params/Norm_0/scale", True),
    ("params/Block_1/Norm_2/bias", True),
    ("params/LayerNorm_0/bias", True),
    ("blocks/attention_norm/scale", True),
    ("bn1/scale", True),
    ("block/BN_2/bias", True),
    ("Dense_0/bias", False),
    ("params/Conv_0/kernel", False),
    ("params/subnet/kernel", False),
  ],
)
def test_normalisation_is_found_by_its_name(name, norm):
  assert algorithms.is_norm(name) is norm


def test_fed_bn_keeps_the_norms_of_a_real_model():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.LayerNorm()(nn.Dense(6)(x)))
      return nn.Dense(3)(x)

  model = models.from_flax(Net(), (4,))
  algorithm = algorithms.fed_bn(model, **SETTINGS)
  state = algorithm.init(jax.random.key(0))
  norm = "LayerNorm_0/"
  assert _names(state.start) == {norm + "bias", norm + "scale"}
  assert not any("Norm" in name for name in _names(state.shared))
  kept = algorithm.init_client(jax.random.key(0))
  mine = algorithm.predict(state, kept, jnp.int32(0))
  want = model.init(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, mine, want)


def test_memory_is_of_clients_that_trained():
  start = {"w": jnp.arange(3.0)}
  kept = _memory.nothing(start)
  assert _memory.recall(kept, start)["w"][2] == 2

  def data(budget):
    return ClientData((), (), jnp.int32(1), jnp.int32(budget))

  new = {"w": jnp.full(3, 7.0)}
  idle = _memory.remember(kept, new, data(0))
  assert _memory.recall(idle, start)["w"][2] == 2
  trained = _memory.remember(kept, new, data(1))
  assert _memory.recall(trained, start)["w"][2] == 7
  # an idle round later does not make the client forget
  later = _memory.remember(trained, new, data(0))
  assert _memory.recall(later, start)["w"][2] == 7
