"""Runs an algorithm on the tiny problem with given cohorts, for the oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from fedjax_het.core import rounds, shuffle

KEY = jax.random.key(11)
BATCH = 32  # holds any client's examples whole: no shuffling matters

# Three rounds in which client 0 never takes part, the others at least once.
COHORTS = [[1, 2, 4, 5], [1, 3, 4, 6], [6, 2, 3, 5]]
EVERYBODY = [list(range(tiny.CLIENTS))] * 3


def run(algorithm, cohorts=EVERYBODY, data=None):
  """Runs one round per cohort (all of one size).

  Returns:
    (first state, last state, list of `Cohort`).
  """
  data = data or tiny.data()

  @jax.jit
  def one_round(state, data, ids):
    return rounds.make_round(algorithm, lambda key, data: ids)(state, data)

  first = state = rounds.init_state(algorithm, KEY, data.num_clients)
  seen = []
  for ids in cohorts:
    state, cohort = one_round(state, data, jnp.asarray(ids))
    seen.append(cohort)
  return first, state, seen


def client_key(round_number, client):
  """The key that the engine gives a client in a round."""
  root = jax.random.split(KEY, 3)[2]
  in_round = jax.random.fold_in(root, round_number)
  return jax.random.fold_in(jax.random.split(in_round)[1], client)


def epoch_order(key, epoch, count):
  """The order of a client's examples in an epoch of training with `key`."""
  order_key = jax.random.fold_in(jax.random.split(key)[0], epoch)
  return np.asarray(shuffle.permute(order_key, jnp.arange(count), count))


def weights(params):
  """Parameters of `tiny.mlp` as the oracles take them."""
  return [np.asarray(params[name], np.float64) for name in ("first", "second")]


def of_client(clients, k):
  """The state of one client out of stacked ones."""
  return jax.tree.map(lambda leaf: leaf[k], clients)


def assert_close(params, want, rtol=1e-4, atol=1e-5):
  """Parameters of `tiny.mlp` against [first, second]."""
  for got, expected in zip(weights(params), want, strict=True):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


def assert_same(got, want, rtol=1e-5, atol=1e-6):
  """Two trees of one structure."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
