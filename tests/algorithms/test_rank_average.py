"""Averages of unequal ranks against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.algorithms import _rank_average as ranks
from fedjax_het.algorithms._kept_values import kept_values
from fedjax_het.core import wire
from fedjax_het.core.errors import UserError

RANK, OWN = 4, (1, 4, 2)  # the ranks of three clients
WEIGHTS = np.array([3.0, 1.0, 2.0])
SHAPES = {"layer_0/q": (6, 5), "layer_0/up": (3, 8)}


def _adapters(rng, rank=RANK):
  out = {}
  for name, (wide, tall) in SHAPES.items():
    a, b = rng.normal(size=(wide, RANK)), rng.normal(size=(RANK, tall))
    a[:, rank:], b[rank:] = 0, 0
    out[name] = {"a": jnp.float32(a), "b": jnp.float32(b)}
  return out


def _clients():
  rng = np.random.default_rng(0)
  return _adapters(rng), [_adapters(rng, rank) for rank in OWN]


def _messages(clients):
  each = [
    kept_values(own, ranks.rank_mask(own, jnp.int32(rank)))
    for own, rank in zip(clients, OWN, strict=True)
  ]
  return each, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def _average(name, chunks=((0, 1, 2),), **options):
  """The averaged factors, with the clients in chunks."""
  old, clients = _clients()
  each, together = _messages(clients)
  average = ranks.rank_average(name, **options)
  acc = average.reducer.zero(each[0])
  for chunk in chunks:
    part = jnp.asarray(chunk)
    own = average.reducer.add(
      average.reducer.zero(each[0]),
      jax.tree.map(lambda leaf, part=part: leaf[part], together),
      jnp.float32(WEIGHTS)[part],
    )
    acc = average.reducer.merge(acc, own)
  reduced = average.reducer.finish(acc)
  return average.finish(average.start(old), reduced), old, clients


def _product(clients, name):
  """sum_i w_i A_i B_i, a client and a rank row at a time."""
  total = np.zeros(SHAPES[name])
  for weight, rank, own in zip(WEIGHTS, OWN, clients, strict=True):
    a, b = (np.asarray(own[name][k], np.float64) for k in "ab")
    for row in range(rank):
      total += weight / WEIGHTS.sum() * np.outer(a[:, row], b[row])
  return total


def test_rank_rows_are_counted():
  found, old, clients = _average("count")
  for name in SHAPES:
    for row in range(RANK):
      held = [k for k, rank in enumerate(OWN) if rank > row]
      for part, axis in (("a", 1), ("b", 0)):
        want = sum(
          WEIGHTS[k] * np.take(np.asarray(clients[k][name][part]), row, axis)
          for k in held
        ) / sum(WEIGHTS[k] for k in held)
        got = np.take(np.asarray(found.adapters[name][part]), row, axis)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert found.moved == ()


def test_rows_that_nobody_holds_stay():
  old, clients = _clients()
  average = ranks.rank_average("count")
  message = kept_values(clients[0], ranks.rank_mask(clients[0], jnp.int32(1)))
  acc = average.reducer.add(
    average.reducer.zero(message),
    jax.tree.map(lambda leaf: leaf[None], message),
    jnp.ones(1),
  )
  found = average.finish(average.start(old), average.reducer.finish(acc))
  for name in SHAPES:
    a, b = found.adapters[name]["a"], found.adapters[name]["b"]
    np.testing.assert_array_equal(a[:, 1:], old[name]["a"][:, 1:])
    np.testing.assert_array_equal(b[1:], old[name]["b"][1:])
    np.testing.assert_allclose(a[:, 0], clients[0][name]["a"][:, 0])


def test_the_product_is_cut_to_the_best_of_its_rank():
  found, _, clients = _average("product")
  for name in SHAPES:
    u, s, vt = np.linalg.svd(_product(clients, name), full_matrices=False)
    rank = min(RANK, s.size)
    want = u[:, :rank] * s[:rank] @ vt[:rank]
    got = found.adapters[name]
    np.testing.assert_allclose(got["a"] @ got["b"], want, atol=2e-5)
    # A is orthonormal, B carries the sizes
    np.testing.assert_allclose(
      np.linalg.norm(got["b"], axis=1)[:rank], s[:rank], atol=2e-5
    )
    np.testing.assert_array_equal(np.asarray(got["b"])[rank:], 0)


def test_rows_without_a_singular_value_can_still_learn():
  """A product of rank 1: the other rows of A are the old ones, B is 0."""
  old, _ = _clients()
  name = "layer_0/q"
  delta = np.outer(np.arange(6.0), np.ones(5))
  found = ranks.split(jnp.float32(delta), old[name]["a"])
  np.testing.assert_allclose(found["a"] @ found["b"], delta, atol=1e-4)
  np.testing.assert_array_equal(found["a"][:, 1:], old[name]["a"][:, 1:])
  np.testing.assert_array_equal(found["b"][1:], 0)
  nothing = ranks.split(jnp.zeros((6, 5)), old[name]["a"])
  np.testing.assert_array_equal(nothing["a"], old[name]["a"])
  np.testing.assert_array_equal(nothing["b"], 0)


def test_stacking_loses_nothing():
  found, old, clients = _average("stack", capacity=5)
  for name in SHAPES:
    np.testing.assert_allclose(
      found.moved[name], _product(clients, name), atol=1e-5
    )
    np.testing.assert_array_equal(found.adapters[name]["a"], old[name]["a"])


@pytest.mark.parametrize("name", ranks.AVERAGES)
def test_chunks_change_nothing(name):
  options = {"capacity": 3} if name == "stack" else {}
  one, *_ = _average(name, **options)
  two, *_ = _average(name, chunks=((2,), (0, 1)), **options)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_equal_ranks_are_the_plain_mean():
  rng = np.random.default_rng(1)
  clients = [_adapters(rng) for _ in range(3)]
  full = [kept_values(c, ranks.rank_mask(c, jnp.int32(RANK))) for c in clients]
  average = ranks.rank_average("count")
  acc = average.reducer.add(
    average.reducer.zero(full[0]),
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *full),
    jnp.float32(WEIGHTS),
  )
  found = average.finish(
    average.start(clients[0]), average.reducer.finish(acc)
  ).adapters
  want = jax.tree.map(
    lambda *leaves: np.average(np.stack(leaves), axis=0, weights=WEIGHTS),
    *clients,
  )
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_costs_its_rows(rank):
  _, clients = _clients()
  message = kept_values(
    clients[1], ranks.rank_mask(clients[1], jnp.int32(rank))
  )
  rows = sum(wide + tall for wide, tall in SHAPES.values())
  assert len(wire.encode(message)) == wire.nbytes(message) == 4 * rank * rows


def test_mistakes():
  with pytest.raises(UserError, match="did you mean 'product'"):
    ranks.rank_average("produkt")
  with pytest.raises(UserError, match="cohort_size"):
    ranks.rank_average("stack")
