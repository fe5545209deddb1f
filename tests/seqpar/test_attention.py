"""Attention of one device and of groups against a NumPy float64 loop.

Gradients are checked along random directions by the complex step: the loop
runs on x + i h d, and the imaginary part over h is the derivative, exact to
float64.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import attention, blockwise
from fedjax_het.seqpar.pack import lay_out

# tokens, query heads, key-value heads, channels; documents, then padding
SIZES = 64, 4, 2, 6
LENGTHS = 23, 14, 1, 16


def identify(lengths, tokens):
  segment, position = np.zeros((2, tokens), np.int32)
  start = 0
  for i, length in enumerate(lengths):
    segment[start : start + length] = i + 1
    position[start : start + length] = np.arange(length)
    start += length
  return segment, position


def loop(q, k, v, segment, position):
  """Token by token and head by head; complex numbers pass through."""
  out = np.zeros(q.shape, q.dtype)
  group = q.shape[1] // k.shape[1]
  for t in np.flatnonzero(segment):
    seen = (segment == segment[t]) & (position <= position[t])
    for n in range(q.shape[1]):
      score = k[seen, n // group] @ q[t, n] / np.sqrt(q.shape[2])
      share = np.exp(score - score.real.max())
      out[t, n] = share @ v[seen, n // group] / share.sum()
  return out


def draw(sizes=SIZES, seed=0):
  tokens, heads, kv_heads, channels = sizes
  rng = np.random.default_rng(seed)
  shapes = [(tokens, n, channels) for n in (heads, kv_heads, kv_heads, heads)]
  *qkv, weight = (rng.standard_normal(shape) for shape in shapes)
  return qkv, weight


def derivative(qkv, directions, weight, ids):
  """d sum(weight x attention) along `directions`, by the complex step."""
  step = 1e-100
  moved = [x + 1j * step * d for x, d in zip(qkv, directions, strict=True)]
  return (loop(*moved, *ids) * weight).sum().imag / step


def sharded(shape, names, ring, ulysses, **options):
  """An attention over whole arrays, and the layout that it wants."""
  devices = np.asarray(jax.devices()[: int(np.prod(shape))])
  mesh = Mesh(devices.reshape(shape), names)
  mapped = jax.shard_map(
    attention.group_attention(ring, ulysses, **options),
    mesh=mesh,
    in_specs=(Spec(names),) * 5,
    out_specs=Spec(names),
    check_vma=False,
  )
  return mapped, int(np.prod([mesh.shape[axis] for axis in ring]))


CASES = {
  "one device": lambda: (attention.local_attention(16), 1),
  "one device, ragged blocks": lambda: (attention.local_attention(24), 1),
  "ulysses, repeated keys": lambda: sharded((4,), ("u",), (), ("u",), block=16),
  "ring": lambda: sharded((4,), ("r",), ("r",), (), block=8),
  "ring of ulysses": lambda: sharded(
    (2, 4), ("r", "u"), ("r",), ("u",), block=16
  ),
  "hypercube of ulysses": lambda: sharded(
    (2, 2, 2), ("a", "b", "c"), ("a", "b"), ("c",), turn="hypercube", block=8
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradient(case):
  function, ring = CASES[case]()
  qkv, weight = draw()
  ids = identify(LENGTHS, SIZES[0])
  order = lay_out(SIZES[0], ring)

  def loss(q, k, v):
    out = function(*(x[order] for x in (q, k, v, *map(jnp.asarray, ids))))
    out = out[np.argsort(order)]
    return jnp.sum(out * jnp.asarray(weight, jnp.float32)), out

  grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(
    *(jnp.asarray(x, jnp.float32) for x in qkv)
  )
  np.testing.assert_allclose(out, loop(*qkv, *ids), rtol=1e-5, atol=1e-5)
  rng = np.random.default_rng(1)
  for part in range(3):
    assert np.isfinite(grads[part]).all()
    directions = [np.zeros_like(x) for x in qkv]
    directions[part] = rng.standard_normal(qkv[part].shape)
    want = derivative(qkv, directions, weight, ids)
    got = (np.asarray(grads[part], np.float64) * directions[part]).sum()
    scale = np.linalg.norm(grads[part]) * np.linalg.norm(directions[part])
    assert abs(got - want) < 1e-6 * scale, (part, got, want)


def test_heads_that_share_keys_unevenly():
  """6 key-value heads over 4 devices: lcm(6, 4) = 12 are sent."""
  function, _ = sharded((4,), ("u",), (), ("u",), block=16)
  qkv, _ = draw((32, 12, 6, 4))
  ids = identify((20, 9), 32)
  got = jax.jit(function)(*(jnp.asarray(x, jnp.float32) for x in qkv), *ids)
  np.testing.assert_allclose(got, loop(*qkv, *ids), rtol=1e-5, atol=1e-5)


def test_a_long_ring_in_bfloat16_is_as_exact_as_one_device():
  """Partial sums stay in float32, however many devices add to them."""
  qkv, weight = draw((64, 2, 2, 8))
  ids = identify((60,), 64)
  *qkv, weight = (
    np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (*qkv, weight)
  )
  rng = np.random.default_rng(3)
  picks = [(i % 3, *(rng.integers(n) for n in (32, 2, 8))) for i in range(300)]
  want = []
  for part, *place in picks:
    directions = [np.zeros_like(x) for x in qkv]
    directions[part][tuple(place)] = 1
    want.append(derivative(qkv, directions, weight, ids))
  errors = []
  for function, ranks in (
    (attention.local_attention(8), 1),
    sharded((8,), ("r",), ("r",), (), block=8),
  ):
    order = lay_out(64, ranks)

    def loss(q, k, v, function=function, order=order):
      out = function(*(x[order] for x in (q, k, v, *map(jnp.asarray, ids))))
      return jnp.sum(out * jnp.asarray(weight, jnp.bfloat16)[order])

    grads = jax.jit(jax.grad(loss, (0, 1, 2)))(
      *(jnp.asarray(x, jnp.bfloat16) for x in qkv)
    )
    got = [float(grads[part][tuple(place)]) for part, *place in picks]
    errors.append(np.linalg.norm(np.subtract(got, want)) / np.linalg.norm(want))
  one, ring = errors
  assert one < 0.01 and ring < 1.03 * one, errors


@pytest.mark.parametrize("ring", [1, 4])
def test_only_blocks_with_something_to_see_are_visited(ring):
  rng = np.random.default_rng(0)
  for lengths in ((512,), (100, 3, 1, 300), tuple(rng.integers(1, 30, 30))):
    ids = identify(lengths, 512)
    shares = [
      [part[lay_out(512, ring)].reshape(ring, -1)[rank] for part in ids]
      for rank in range(ring)
    ]
    visited = seen_blocks = 0
    for mine, theirs in itertools.product(shares, shares):
      see = (
        (mine[0][:, None] == theirs[0])
        & (mine[1][:, None] >= theirs[1])
        & (mine[0][:, None] > 0)
      )
      blocks = see.reshape(len(mine[0]) // 16, 16, -1, 16).any((1, 3))
      cut = (blockwise.cut(x, 16) for x in (mine, theirs))
      low, high = map(np.asarray, blockwise.span(*cut))
      places = np.arange(blocks.shape[1])
      inside = (places >= low[:, None]) & (places < high[:, None])
      assert not (blocks & ~inside).any()
      visited, seen_blocks = visited + inside.sum(), seen_blocks + blocks.sum()
    # documents that end within a block may cost one that is not needed
    assert visited <= seen_blocks * (1 if len(lengths) == 1 else 1.15)


def test_every_rank_of_a_ring_has_the_same_work_in_every_step():
  """Pairs that a rank computes when it meets another: dealt, and in pieces."""
  ids = identify((700, 20, 180, 100), 1024)

  def busiest(order):
    work = np.zeros((8, 8))
    shares = [np.asarray(part)[order].reshape(8, -1) for part in ids]
    for a, b in itertools.product(range(8), range(8)):
      same = shares[0][a][:, None] == shares[0][b]
      work[a, (a - b) % 8] = (
        same
        & (shares[1][a][:, None] >= shares[1][b])
        & (shares[0][a][:, None] > 0)
      ).sum()
    return work.max(0).sum() / work.mean(0).sum()

  assert busiest(lay_out(1024, 8)) < 1.02
  assert busiest(np.arange(1024)) > 1.7


def test_memory_is_linear_in_the_tokens():
  def bytes_of(tokens):
    like = [
      jax.ShapeDtypeStruct((tokens, heads, 8), jnp.float32)
      for heads in (2, 1, 1)
    ]
    ids = [jax.ShapeDtypeStruct((tokens,), jnp.int32)] * 2

    def loss(*args):
      return attention.local_attention(64)(*args).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*like, *ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  small, large = bytes_of(1024), bytes_of(4096)
  assert large < 4.5 * small and large < 4 * 4096**2


@pytest.mark.parametrize(
  ("degree", "heads", "want"),
  [(8, 8, (1, 8)), (8, 12, (2, 4)), (8, 3, (8, 1)), (1, 4, (1, 1))],
)
def test_split_degree(degree, heads, want):
  limit = attention.head_limit(heads)
  assert attention.split_degree(degree, limit) == want


def test_mistakes():
  with pytest.raises(UserError, match="did you mean 'hypercube'"):
    attention.group_attention(("r",), (), turn="hypercub")
  function, _ = sharded((4,), ("u",), (), ("u",))
  q, k = jnp.zeros((8, 6, 2)), jnp.zeros((8, 2, 2))
  ids = jnp.zeros(8, jnp.int32)
  with pytest.raises(ValueError, match="6 heads over 4 devices"):
    function(q, k, k, ids, ids)
