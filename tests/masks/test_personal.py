"""All clients' packed masks against one dense network a client."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_het import models
from fedjax_het.algorithms import hide_n_seek
from fedjax_het.core import evaluate, rounds
from fedjax_het.core.errors import UserError
from fedjax_het.masks import personal
from fedjax_het.masks.at_init import prune_at_init
from fedjax_het.selection import uniform
from fedjax_het_kernels.masked_matmul.op import pack_rows

pack = jax.jit(pack_rows)

CLIENTS, CLASSES = 5, 3


def network(hidden=(33, 20), bias=True):
  model = models.build("mlp", (4, 3), CLASSES, hidden=hidden, use_bias=bias)
  params = model.init(jax.random.key(0))
  if bias:  # they start at 0
    params = jax.tree.map(lambda p: p + 0.1 if p.ndim == 1 else p, params)
  return model, params


def random_masks(params, seed=0):
  """Bool kernels [N, K, M] by the name of the layer."""
  rng = np.random.default_rng(seed)
  return {
    name: rng.random((CLIENTS, *layer["kernel"].shape)) < 0.5
    for name, layer in params.items()
  }


def dense(model, params, kept, x, values):
  """One client's logits after another."""
  out, apply = [], jax.jit(model.apply)
  for n in range(CLIENTS):
    own = {
      name: {
        **layer,
        "kernel": layer["kernel"]
        * jnp.where(kept[name][n], jnp.float32(values[1]), values[0]),
      }
      for name, layer in params.items()
    }
    out.append(apply(own, x if x.ndim == 3 else x[n]))
  return np.stack(out)


@pytest.mark.parametrize("chunk", [None, 1, 2, 3])
@pytest.mark.parametrize("values", [(-1, 1), (0, 1)])
@pytest.mark.parametrize("shared", [True, False])
def test_logits(shared, values, chunk):
  model, params = network(bias=shared)
  kept = random_masks(params)
  shape = (6, 4, 3) if shared else (CLIENTS, 6, 4, 3)
  x = np.random.default_rng(1).standard_normal(shape, np.float32)
  ours = jax.jit(functools.partial(personal.logits, values=values, chunk=chunk))
  bits = [pack(kept[name]) for name in params]
  got = ours(params, bits, x.reshape(*shape[:-2], -1))
  expected = dense(model, params, kept, x, values)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_layers_follow_their_numbers():
  """Ten hidden layers: "Dense_10" sorts before "Dense_2" as text."""
  model, params = network(hidden=(7,) * 10)
  params = dict(sorted(params.items()))
  kept = random_masks(params)
  bits = [pack(kept[f"Dense_{i}"]) for i in range(11)]
  x = np.random.default_rng(1).standard_normal((2, 4, 3), np.float32)
  got = jax.jit(personal.logits)(params, bits, x.reshape(2, -1))
  expected = dense(model, params, kept, x, (-1, 1))
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("values", [(-1, 1), (0, 1)])
def test_accuracy_is_the_engines(values):
  """After two rounds of HideNseek, from the signs that clients keep."""
  model = models.build("mlp", tiny.INPUT_SHAPE, tiny.CLASSES, hidden=(17,))
  algorithm = hide_n_seek(
    model,
    prune_at_init(model, tiny.INPUT_SHAPE, density=0.6, iterations=1),
    optimizer=optax.adam(0.3),
    batch_size=4,
    epochs=2,
    values=values,
    personal=True,
  )
  data = tiny.data()
  state = rounds.init_state(algorithm, jax.random.key(0), tiny.CLIENTS)
  one_round = jax.jit(rounds.make_round(algorithm, uniform(4)))
  for _ in range(2):
    state, _ = one_round(state, data)
  engine = functools.partial(evaluate.client_accuracy, algorithm, model)
  expected = jax.jit(engine)(state, data)
  weights, support = state.server.weights, state.server.support
  bits = personal.bits_of(weights, support, state.clients)
  for chunk, batch_size in ((None, 32), (3, 2)):
    ours = functools.partial(
      personal.client_accuracy,
      values=values,
      chunk=chunk,
      batch_size=batch_size,
    )
    got = jax.jit(ours)(weights, bits, data)
    np.testing.assert_allclose(got, expected, atol=1e-6)
  assert len(set(np.asarray(expected).tolist())) > 1
  figures = jax.jit(
    evaluate.make_evaluate(
      algorithm, model, judge=personal.judge(values=values)
    )
  )(state, data)
  np.testing.assert_allclose(figures["client_accuracy"], expected, atol=1e-6)


def test_memory_is_that_of_a_chunk():
  """64 dense networks would be 13 MiB; a chunk of 4 needs one at a time."""
  _, params = network(hidden=(512, 96))
  bits = [
    jax.ShapeDtypeStruct((64, -(-k // 32), m), jnp.uint32)
    for k, m in ((12, 512), (512, 96), (96, 3))
  ]
  x = jax.ShapeDtypeStruct((8, 12), jnp.float32)

  def run(params, bits, x):
    return personal.logits(params, bits, x, chunk=4)

  memory = jax.jit(run).lower(params, bits, x).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 2 * 2**20


def test_wrong_arguments():
  _, params = network(hidden=(4,))
  bits = [pack(kept) for kept in random_masks(params).values()]
  x = jnp.ones((2, 12))
  with pytest.raises(UserError, match="chains of dense layers"):
    personal.logits({"first": jnp.ones((12, 3))}, bits, x)
  with pytest.raises(UserError, match="chains of dense layers"):
    lenet = models.build("lenet", (28, 28, 1), 10)
    personal.layers(jax.eval_shape(lenet.init, jax.random.key(0)))
  with pytest.raises(UserError, match="1 masks for 2 dense layers"):
    personal.logits(params, bits[:1], x)
  with pytest.raises(UserError, match="do not follow each other"):
    personal.layers({"a_1": params["Dense_0"], "a_0": params["Dense_1"]})
  with pytest.raises(UserError, match="masks of 5 clients, but data of 7"):
    personal.client_accuracy(params, bits, tiny.data())
  with pytest.raises(ValueError, match="need x"):
    personal.logits(params, bits, x[:, :5])
