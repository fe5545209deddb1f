"""Centralised training is plain SGD on everybody's examples."""

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from oracles import client_arrays, loss_and_grad
from oracles_global import axpy

from fedjax_het import algorithms
from fedjax_het.core import evaluate, rounds


def test_pooling_keeps_every_example_once():
  data = tiny.data()
  pooled = algorithms.pooled(data)
  assert pooled.num_clients == 1
  for rows, all_rows in ((pooled.train, data.train), (pooled.test, data.test)):
    want = [
      index[:count]
      for index, count in zip(
        np.asarray(all_rows.index), np.asarray(all_rows.count), strict=True
      )
    ]
    np.testing.assert_array_equal(rows.index, [np.concatenate(want)])
    assert int(rows.count[0]) == sum(map(len, want))


def test_it_is_minibatch_sgd_whose_momentum_goes_on():
  """The same batches, one loop over all rounds, float64."""
  data = algorithms.pooled(tiny.data())
  algorithm = algorithms.centralised(
    tiny.mlp(),
    optimizer=optax.sgd(0.05, momentum=0.9),
    batch_size=10,
    epochs=2,
  )
  first, last, _ = federation.run(algorithm, [[0]] * 3, data)
  w = federation.weights(first.server.params)
  m = [np.zeros_like(a) for a in w]
  x, y = client_arrays(data, 0)
  for t in range(3):
    for epoch in range(2):
      key = federation.client_key(t, 0)
      order = federation.epoch_order(key, epoch, len(y))
      for start in range(0, len(y), 10):
        rows = order[start : start + 10]
        _, g = loss_and_grad(*w, x[rows], y[rows])
        m = axpy(0.9, m, g)
        w = axpy(-0.05, m, w)
  federation.assert_close(last.server.params, w)


def test_it_is_evaluated_on_the_clients_it_was_pooled_from():
  model, data = tiny.mlp(), tiny.data()
  algorithm = algorithms.centralised(
    model, optimizer=optax.sgd(0.1), batch_size=32
  )
  pooled = algorithms.pooled(data)
  state = rounds.init_state(algorithm, federation.KEY, 1)
  state = state._replace(clients=())
  run = jax.jit(evaluate.make_evaluate(algorithm, model))
  apart, together = run(state, data), run(state, pooled)
  assert apart["client_accuracy"].shape == (tiny.CLIENTS,)
  # every client has as many test examples
  np.testing.assert_allclose(
    jnp.mean(apart["client_accuracy"]), together["client_accuracy"][0], 1e-5
  )
