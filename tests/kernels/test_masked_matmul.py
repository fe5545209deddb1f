"""Masked products: XLA path against float64, gradients, transformations."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fedjax_het_kernels.masked_matmul import reference, rivals, specs, xla
from fedjax_het_kernels.masked_matmul.op import (
  masked_matmul,
  pack_rows,
  ste_update,
  unpack_rows,
)

SPECS = [
  pytest.param(spec, id=spec.name)
  for spec in specs.SPECS
  if not (spec.bench or spec.gpu)
]
BOTH = pytest.mark.parametrize("values", [(-1, 1), (0, 1)])


def pack(bits):
  """bool[..., K, M] -> u32[..., ceil(K / 32), M] through np.packbits."""
  *batch, rows, columns = bits.shape
  padded = np.zeros((*batch, -(-rows // 32) * 32, columns), bool)
  padded[..., :rows, :] = bits
  packed = np.packbits(padded, axis=-2, bitorder="little")
  packed = packed.reshape(*batch, -(-rows // 32), 4, columns)
  packed = packed.swapaxes(-1, -2)
  return np.ascontiguousarray(packed).view("<u4")[..., 0]


def case(clients=3, batch=5, rows=45, columns=11, seed=0):
  """x, weights, scores f32, and the scores' bits."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((clients, batch, rows), np.float32)
  weights = rng.standard_normal((rows, columns), np.float32) / rows**0.5
  weights = weights.astype(np.float32)
  scores = rng.standard_normal((clients, rows, columns), np.float32)
  return x, weights, scores, pack(scores >= 0)


def dense(x, weights, scores, values):
  """The same by dense masks; the scores' gradient goes straight through."""
  low, high = values
  hard = jnp.where(scores >= 0, jnp.float32(high), jnp.float32(low))
  mask = scores + jax.lax.stop_gradient(hard - scores)
  return jnp.einsum("nbk,nkm->nbm", x, weights[None] * mask)


@BOTH
@pytest.mark.parametrize("spec", SPECS)
def test_against_reference(spec, values):
  x, weights, bits = specs.inputs(spec)
  expected = reference.masked_matmul(x, weights, bits, values)
  product = masked_matmul(x, weights, bits, values=values)
  assert product.dtype == x.dtype and product.shape == expected.shape
  tolerance = specs.TOLERANCE[spec.dtype]
  np.testing.assert_allclose(
    np.float64(product), expected, rtol=tolerance, atol=tolerance
  )


@settings(max_examples=15, deadline=None)
@given(
  clients=st.integers(0, 4),
  batch=st.integers(0, 5),
  rows=st.integers(0, 70),
  columns=st.integers(0, 9),
  seed=st.integers(0, 2**32 - 1),
)
def test_against_loops(clients, batch, rows, columns, seed):
  """Every sum one number at a time, masks packed by np.packbits."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((clients, batch, rows), np.float32)
  weights = rng.standard_normal((rows, columns), np.float32)
  kept = rng.random((clients, rows, columns)) < 0.5
  signs, masks = (
    np.asarray(masked_matmul(x, weights, pack(kept), values=values))
    for values in ((-1, 1), (0, 1))
  )
  for n, b, m in np.ndindex(clients, batch, columns):
    terms = np.float64(x[n, b]) * weights[:, m]
    atol = 1e-5 * (1 + np.abs(terms).sum())
    picked = float(terms[kept[n, :, m]].sum())
    assert abs(masks[n, b, m] - picked) < atol
    assert abs(signs[n, b, m] - (2 * picked - terms.sum())) < atol


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(0, 100), seed=st.integers(0, 2**32 - 1))
def test_packing(rows, seed):
  rng = np.random.default_rng(seed)
  kept = rng.random((2, rows, 3)) < 0.5
  bits = jax.jit(pack_rows)(kept)
  np.testing.assert_array_equal(bits, pack(kept))
  np.testing.assert_array_equal(reference.pack_rows(kept - 0.5), pack(kept))
  np.testing.assert_array_equal(unpack_rows(bits, rows), kept)
  numbers = np.where(kept, rng.choice([0.0, -0.0, 2.5], kept.shape), -1e-30)
  np.testing.assert_array_equal(jax.jit(pack_rows)(numbers), bits)


@BOTH
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_dense_masks(values, shared):
  x, weights, scores, bits = case()
  if shared:
    x = x[0]

  def ours(x, weights, scores):
    out = masked_matmul(x, weights, bits, scores, values=values)
    return jnp.sum(jnp.sin(out))

  def theirs(x, weights, scores):
    if shared:
      x = jnp.broadcast_to(x, (3, *x.shape))
    return jnp.sum(jnp.sin(dense(x, weights, scores, values)))

  got = jax.jit(jax.grad(ours, (0, 1, 2)))(x, weights, scores)
  expected = jax.grad(theirs, (0, 1, 2))(x, weights, scores)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  without = jax.grad(
    lambda x: jnp.sum(jnp.sin(masked_matmul(x, weights, bits, values=values)))
  )(x)
  np.testing.assert_array_equal(without, got[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_step_is_the_dense_gradients(dtype):
  x, weights, scores, _ = case(rows=70)
  stored = jnp.asarray(scores, dtype)
  grad = np.random.default_rng(1).standard_normal((3, 5, 11), np.float32)
  _, pullback = jax.vjp(
    lambda s: dense(x, weights, s, (-1, 1)), jnp.float32(stored)
  )
  expected = np.float32(stored) - 0.3 * np.asarray(pullback(grad)[0])
  new, bits = ste_update(x, grad, weights, stored, learning_rate=0.3)
  assert new.dtype == dtype
  eps = float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(np.float32(new), expected, rtol=eps, atol=10 * eps)
  np.testing.assert_array_equal(bits, pack(np.float32(new) >= 0))
  by_reference, _ = reference.ste_update(
    x, grad, weights, np.float32(stored), 0.3
  )
  np.testing.assert_allclose(by_reference, expected, rtol=1e-5, atol=1e-5)


def test_bits_are_the_signs_of_the_scores_as_they_are_stored():
  """-1e-9 is stored as -0 in float16, whose sign is +1; NaN has bit 0."""
  x, grad, weights = np.ones((1, 1, 2)), np.ones((1, 1, 1)), np.ones((2, 1))
  x, grad, weights = (a.astype(np.float32) for a in (x, grad, weights))
  scores = np.array([0.0, np.nan], np.float16).reshape(1, 2, 1)
  new, bits = ste_update(x, grad, weights, scores, learning_rate=1e-9)
  assert new[0, 0, 0] == 0 and np.isnan(new[0, 1, 0])
  assert bits.tolist() == [[[1]]]


def test_training_by_steps_is_training_by_gradients():
  """Five steps of a client that fits its own batch; the loss falls."""
  x, weights, scores, _ = case(rows=64)
  target = dense(x, weights, np.roll(scores, 1, axis=1), (-1, 1))

  def loss(product):
    return 0.5 * jnp.sum(jnp.square(product - target))

  slow, fast, bits = jnp.asarray(scores), jnp.asarray(scores), pack_rows(scores)
  losses = []
  for _ in range(5):
    gradient = jax.grad(lambda s: loss(dense(x, weights, s, (-1, 1))))(slow)
    slow = slow - 0.05 * gradient
    product = masked_matmul(x, weights, bits)
    losses.append(float(loss(product)))
    fast, bits = ste_update(
      x, jax.grad(loss)(product), weights, fast, learning_rate=0.05
    )
    np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4)
  assert losses[-1] < losses[0]


def test_vmap():
  runs = [case(seed=seed) for seed in range(3)]
  x, weights, _, bits = map(np.stack, zip(*runs, strict=True))
  every = jax.jit(jax.vmap(masked_matmul))(x, weights, bits)
  only_bits = jax.vmap(masked_matmul, (None, None, 0))(x[0], weights[0], bits)
  for s in range(3):
    np.testing.assert_allclose(
      every[s], masked_matmul(x[s], weights[s], bits[s]), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
      only_bits[s],
      masked_matmul(x[0], weights[0], bits[s]),
      rtol=1e-5,
      atol=1e-5,
    )


def test_shard_map():
  """Clients over 8 devices: product, all gradients, the scores' step."""
  assert jax.device_count() >= 8, "tests/conftest.py gives 8 CPU devices"
  x, weights, scores, bits = case(clients=16)
  mesh = jax.make_mesh((8,), ("clients",), axis_types=(AxisType.Auto,))

  def everything(x, weights, scores, bits):
    product, pullback = jax.vjp(
      lambda *args: masked_matmul(*args[:2], bits, args[2]), x, weights, scores
    )
    new = ste_update(x, product, weights, scores, learning_rate=0.1)
    return product, *pullback(product), *new

  alone = everything(x, weights, scores, bits)
  spec = P("clients")
  sharded = jax.shard_map(
    everything,
    mesh=mesh,
    in_specs=(spec, P(), spec, spec),
    out_specs=(spec, spec, P(), spec, spec, spec),
  )
  for a, b in zip(
    jax.jit(sharded)(x, weights, scores, bits), alone, strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_several_clients_at_once(monkeypatch):
  """What accelerators run where there is no Triton."""
  x, weights, scores, bits = case(clients=7)
  alone = masked_matmul(x, weights, bits)
  monkeypatch.setattr(xla, "TEMPORARY", 4 * 3 * weights.size)  # 3, 3 and 1
  monkeypatch.setattr(
    jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args)
  )

  def product(x, weights, bits):
    return masked_matmul(x, weights, bits, implementation="xla")

  text = str(jax.make_jaxpr(product)(x, weights, bits))
  assert "length=2" in text  # a loop over the threes, then the rest
  again = product(x, weights, bits)
  np.testing.assert_allclose(again, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["product", "gradient", "step"])
def test_no_dense_weights_of_all_clients(name):
  """At most a few clients' dense weights exist; 64 would need 64 MiB."""
  clients, rows, columns, batch = 64, 512, 512, 16
  shape = jax.ShapeDtypeStruct
  x = shape((clients, batch, rows), jnp.float32)
  y = shape((clients, batch, columns), jnp.float32)
  weights = shape((rows, columns), jnp.float32)
  bits = shape((clients, rows // 32, columns), jnp.uint32)
  scores = shape((clients, rows, columns), jnp.float32)

  def gradient(x, y, weights, bits):
    return jax.vjp(lambda x: masked_matmul(x, weights, bits), x)[1](y)

  def step(x, y, weights, scores):
    return ste_update(x, y, weights, scores, learning_rate=0.1)

  function, args = {
    "product": (masked_matmul, (x, weights, bits)),
    "gradient": (gradient, (x, y, weights, bits)),
    "step": (step, (x, y, weights, scores)),
  }[name]
  memory = jax.jit(function).lower(*args).compile().memory_analysis()
  assert memory.temp_size_in_bytes <= 4 * (4 * rows * columns)


def test_rivals_agree():
  spec = specs.Spec("small", 4, 3, 40, 6)
  arrays = specs.inputs(spec)
  expected = reference.masked_matmul(*arrays)
  for shared in (False, True):
    if shared:
      arrays = (arrays[0][0], *arrays[1:])
      expected = reference.masked_matmul(*arrays)
    every = rivals.variants(spec._replace(shared=shared))
    assert next(iter(every)) == "ours"
    for prepare, run in every.values():
      np.testing.assert_allclose(
        run(*prepare(*map(jnp.asarray, arrays))), expected, atol=1e-5
      )


X, WEIGHTS, SCORES, BITS = case()


@pytest.mark.parametrize(
  "change, message",
  [
    ({"x": X[..., :-1]}, r"weights \(45, 11\) need x \[N, B, 45\]"),
    ({"x": X[:2]}, "3 clients' masks, but x .* has 2 clients"),
    ({"x": X.astype(np.int32)}, "must both be float32.* int32 and float32"),
    ({"weights": WEIGHTS.astype(np.float16)}, "float32 and float16"),
    ({"weights": WEIGHTS[0]}, r"weights must be \[K, M\]"),
    ({"bits": BITS.astype(np.int32)}, "bits must be uint32"),
    ({"bits": BITS[:, :1]}, r"give \[N, 2, 11\] words, as pack_rows"),
    ({"bits": BITS[0]}, "do not mask weights"),
    ({"scores": SCORES[:2]}, r"scores must be floats \['N', 45, 11\]"),
    ({"values": (1, -1)}, r"\(-1, 1\) or \(0, 1\), not \(1, -1\)"),
    ({"precision": "hihg"}, "None, 'default', 'high', 'highest'"),
    ({"implementation": "xIa"}, "None and 'xla', 'triton'"),
  ],
)
def test_wrong_arguments(change, message):
  arguments = {"x": X, "weights": WEIGHTS, "bits": BITS, **change}
  with pytest.raises(ValueError, match=message):
    masked_matmul(**arguments)


def test_wrong_arguments_of_the_others():
  grad = X[..., :11]
  with pytest.raises(ValueError, match=r"grad must be float32\[3, 5, 11\]"):
    ste_update(X, grad[:, :4], WEIGHTS, SCORES, learning_rate=1)
  with pytest.raises(ValueError, match="scores must be floats"):
    ste_update(X, grad, WEIGHTS, SCORES[0], learning_rate=1)
  with pytest.raises(ValueError, match="NaN"):
    pack_rows(np.full((2, 2), np.nan))
  with pytest.raises(ValueError, match=r"\[..., K, M\]"):
    pack_rows(np.ones(3))
  with pytest.raises(ValueError, match="no sign"):
    pack_rows(np.ones((2, 2), np.complex64))
  with pytest.raises(ValueError, match=r"65 rows need uint32\[..., 3, M\]"):
    unpack_rows(BITS, 65)
