"""A tiny federated problem that the contract and the oracles share."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.types import (
  NO_BUDGET,
  Examples,
  FederatedData,
  Model,
  Rows,
)

FEATURES, HIDDEN, CLASSES, CLIENTS = 12, 9, 3, 7
INPUT_SHAPE = (FEATURES,)


def mlp(*, bias: bool = False) -> Model:
  """Two dense layers; written out, so that tests do not lean on `models`."""

  def init(key):
    first, second = jax.random.split(key)
    params = {
      "first": jax.random.normal(first, (FEATURES, HIDDEN)) / FEATURES**0.5,
      "second": jax.random.normal(second, (HIDDEN, CLASSES)) / HIDDEN**0.5,
    }
    return params | {"shift": jnp.zeros(HIDDEN)} if bias else params

  def apply(params, x):
    z = x @ params["first"]
    if bias:
      z = z + params["shift"][None]
    return jax.nn.relu(z) @ params["second"]

  return Model(init, apply)


def data(*, seed: int = 0, budget: list[int] | None = None) -> FederatedData:
  """Seven clients of 3 to 20 train and 4 test examples; classes separable."""
  rng = np.random.default_rng(seed)
  count = np.array([3, 20, 8, 11, 16, 5, 9], np.int32)
  total, rows = 24 * CLIENTS + 30, int(count.max())
  centre = rng.normal(size=(CLASSES, FEATURES))
  y = rng.integers(0, CLASSES, total).astype(np.int32)
  x = (centre[y] + rng.normal(size=(total, FEATURES))).astype(np.float32)
  index = rng.permutation(24 * CLIENTS).reshape(CLIENTS, 24).astype(np.int32)
  held = slice(24 * CLIENTS, None)
  return FederatedData(
    examples=Examples(jnp.asarray(x), jnp.asarray(y)),
    train=Rows(jnp.asarray(index[:, :rows]), jnp.asarray(count)),
    test=Rows(
      jnp.asarray(index[:, rows:]), jnp.full(CLIENTS, 24 - rows, jnp.int32)
    ),
    heldout=Examples(jnp.asarray(x[held]), jnp.asarray(y[held])),
    budget=jnp.full(CLIENTS, NO_BUDGET, jnp.int32)
    if budget is None
    else jnp.asarray(budget, jnp.int32),
  )


def poison(federated: FederatedData, client: int) -> FederatedData:
  """The same data with NaN in every example of one client."""
  rows = federated.train.index[client]
  x = federated.examples.x.at[rows].set(jnp.nan)
  return federated._replace(examples=federated.examples._replace(x=x))
