"""The Triton kernels of masked_matmul, interpreted, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het_kernels.masked_matmul import launch, reference, specs
from fedjax_het_kernels.masked_matmul.op import masked_matmul, ste_update

# Even and ragged in each of B, K, M; one and several blocks of each.
NAMES = ("one_of_each", "even", "ragged", "several_blocks", "half")
SPECS = [
  pytest.param(spec, id=spec.name) for spec in specs.SPECS if spec.name in NAMES
]


def close(got, expected, dtype):
  tolerance = 2 * specs.TOLERANCE[np.dtype(dtype).name]
  np.testing.assert_allclose(
    np.float64(got), expected, rtol=tolerance, atol=tolerance
  )


@pytest.mark.parametrize(
  "values, shared", [((-1, 1), False), ((0, 1), False), ((-1, 1), True)]
)
@pytest.mark.parametrize("spec", SPECS)
def test_product_and_gradient(interpreter, spec, values, shared):
  """Outputs start as NaN, so each element is written."""
  x, weights, bits = specs.inputs(spec._replace(shared=shared))
  product, pullback = jax.vjp(
    lambda x: masked_matmul(
      x, weights, bits, values=values, implementation="interpret"
    ),
    jnp.asarray(x),
  )
  close(product, reference.masked_matmul(x, weights, bits, values), spec.dtype)
  grad = np.random.default_rng(1).standard_normal(product.shape)
  grad = grad.astype(product.dtype)
  masked = np.float64(weights) * reference.masks(bits, spec.rows, values)
  expected = np.einsum("nbm,nkm->nbk", np.float64(grad), masked)
  (x_grad,) = pullback(grad)
  close(x_grad, expected.sum(axis=0) if shared else expected, spec.dtype)


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("spec", SPECS)
def test_step(interpreter, spec, stored):
  x, weights, _ = specs.inputs(spec)
  rng = np.random.default_rng(1)
  scores = rng.standard_normal((spec.clients, *weights.shape)).astype(stored)
  grad = rng.standard_normal((spec.clients, spec.batch, spec.columns))
  grad = grad.astype(x.dtype)
  new, bits = ste_update(
    x,
    grad,
    weights,
    scores,
    learning_rate=0.1,
    implementation="interpret",
  )
  expected, _ = reference.ste_update(x, grad, weights, scores, 0.1)
  assert new.dtype == scores.dtype
  close(new, expected, "float16" if "half" in (spec.name, stored) else stored)
  np.testing.assert_array_equal(bits, reference.pack_rows(np.float64(new)))


def test_shared_step(interpreter):
  x, weights, _ = specs.inputs(specs.Spec("shared", 2, 9, 40, 20, shared=True))
  rng = np.random.default_rng(1)
  scores = rng.standard_normal((2, 40, 20), np.float32)
  grad = rng.standard_normal((2, 9, 20), np.float32)
  new, _ = ste_update(
    x, grad, weights, scores, learning_rate=0.1, implementation="interpret"
  )
  close(new, reference.ste_update(x, grad, weights, scores, 0.1)[0], "float32")


def test_under_jit_and_vmap(interpreter):
  spec = specs.Spec("seeds", 2, 3, 33, 17)
  x, weights, bits = specs.inputs(spec)
  many = jax.jit(
    jax.vmap(
      lambda bits: masked_matmul(x, weights, bits, implementation="interpret")
    )
  )(np.stack([bits, ~bits]))
  expected = reference.masked_matmul(x, weights, bits)
  close(many, np.stack([expected, -expected]), "float32")


@pytest.mark.parametrize("name", ["nobody", "no_examples", "no_rows"])
def test_nothing_is_launched_for_nothing(interpreter, name):
  (spec,) = (spec for spec in specs.SPECS if spec.name == name)
  product = masked_matmul(*specs.inputs(spec), implementation="interpret")
  np.testing.assert_array_equal(
    product, np.zeros((spec.clients, spec.batch, spec.columns))
  )


def test_bfloat16_is_refused(interpreter):
  x, weights, bits = specs.inputs(specs.Spec("brain", 1, 2, 3, 4, "bfloat16"))
  with pytest.raises(ValueError, match="silently wrong on bfloat16"):
    masked_matmul(x, weights, bits, implementation="interpret")


def test_triton_needs_a_gpu(interpreter):
  if jax.default_backend() != "cpu":
    pytest.skip("there is one")
  arrays = specs.inputs(specs.Spec("small", 1, 2, 3, 4))
  with pytest.raises(NotImplementedError, match='"triton" needs a CUDA device'):
    masked_matmul(*arrays, implementation="triton")


@pytest.mark.parametrize("clients", [1, 70_000])
def test_clients_do_not_run_into_the_grid_s_limits(clients):
  """CUDA's grid ends at 65,535 in its second and third dimension."""
  grids = []

  def call(source, *arrays, grid, outputs, **options):
    grids.append(grid)
    return tuple(jnp.zeros((1,)) for _ in outputs)

  shape = jax.ShapeDtypeStruct
  launch.matmul(
    call,
    shape((clients, 40, 100), jnp.float32),
    shape((100, 200), jnp.float32),
    shape((clients, 4, 200), jnp.uint32),
    transposed=False,
    signed=True,
    precision="default",
  )
  ((programs,),) = grids
  assert programs % clients == 0 and programs < 2**31


# The instructions of the kernels' inline assembly, on Python integers.
def rotated(word, by):
  by &= 31
  return ((word << by) | (word >> (32 - by))) & 0xFFFFFFFF


def logic(a, b, c, table):
  """lop3: bit i of the result is bit (a_i, b_i, c_i) of the table."""
  return sum(
    (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i
    for i in range(32)
  )


def permuted(word, selectors):
  """prmt of one word: bytes, or their signs spread where a selector has 8."""
  out = 0
  for i in range(4):
    selector = selectors >> 4 * i & 15
    byte = word >> 8 * (selector & 3) & 255
    if selector & 8:
      byte = 255 if byte & 128 else 0
    out |= byte << 8 * i
  return out


def assembled(text, value, part, left):
  """Runs inline assembly on registers $1, $2, $3; returns $0."""
  registers = {"$1": value, "$2": part, "$3": left}
  for line in text.replace("{", "").replace("}", "").split(";"):
    name, _, rest = line.strip().partition(" ")
    if not name or name == ".reg":
      continue
    out, *operands = (item.strip() for item in rest.split(","))
    a = [registers.get(item) for item in operands]
    a = [
      int(o, 0) if r is None else r for r, o in zip(a, operands, strict=True)
    ]
    if name == "shf.l.wrap.b32":
      assert a[0] == a[1]
      registers[out] = rotated(a[0], a[2])
    elif name == "lop3.b32":
      registers[out] = logic(*a)
    elif name == "prmt.b32":
      registers[out] = permuted(a[0], a[2])
    else:
      assert name == "and.b32", name
      registers[out] = a[0] & a[1]
  return registers["$0"]


@pytest.mark.parametrize("name", ["NEGATE", "KEEP"])
def test_two_halves_at_once(interpreter, name):
  """The inline assembly, which no interpreter runs, for all 16 bits."""
  from fedjax_het_kernels.masked_matmul import triton as source

  text = getattr(source, name).value
  rng = np.random.default_rng(0)
  for bit in range(16):
    values, parts = rng.integers(0, 2**16, (2, 2)).tolist()
    got = assembled(
      text,
      values[0] | values[1] << 16,
      parts[0] | parts[1] << 16,
      (15 - bit) * 0x10001,
    )
    expected = []
    for value, part in zip(values, parts, strict=True):
      kept = part >> bit & 1
      if name == "NEGATE":
        expected.append(value if kept else value ^ 0x8000)
      else:
        expected.append(value if kept else 0)
    assert got == expected[0] | expected[1] << 16
