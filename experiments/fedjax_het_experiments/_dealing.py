"""Deals a setting's data set once for each seed: rows [S, N, R]."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_het.algorithms import pooled
from fedjax_het.core.types import FederatedData, Rows
from fedjax_het.data import concept, feature_skew, partition
from fedjax_het.data.federated import federate
from fedjax_het_experiments._setting import Setting


def deal(setting: Setting, seeds: Sequence[int]) -> FederatedData:
  """One data set with a partition for each seed: rows [S, N, R].

  With views or concepts each seed has examples of its own: all are stored one
  after another, and each seed's rows point into its own.
  """
  dealt = []
  for seed in seeds:
    if setting.natural is not None:
      data = setting.natural(seed)
    else:
      parts = partition.parse(
        setting.partition, setting.dataset.train_y, setting.num_clients, seed
      )
      data = federate(setting.dataset, parts, seed=seed)
    if setting.views is not None:
      data = feature_skew.apply(data, setting.views, heldout="share")
    if setting.concepts is not None:
      data = concept.apply(data, setting.concepts, heldout="share")
    dealt.append(data)
  together = dealt[0]
  if setting.views is not None or setting.concepts is not None:
    size = together.examples.y.shape[0]
    together = together._replace(
      examples=jax.tree.map(
        lambda *leaves: jnp.concatenate(leaves),
        *(data.examples for data in dealt),
      )
    )
    dealt = [_moved(data, place * size) for place, data in enumerate(dealt)]
  return together._replace(
    train=_stack([data.train for data in dealt], setting.width),
    test=_stack([data.test for data in dealt], setting.width),
    devices=setting.devices,
  )


def _moved(data: FederatedData, start: int) -> FederatedData:
  """The same rows of examples that begin at `start`."""
  train, test = (
    rows._replace(index=rows.index + start) for rows in (data.train, data.test)
  )
  return data._replace(train=train, test=test)


def of_seed(data: FederatedData, place: int) -> FederatedData:
  """The partition of one seed: rows [N, R] of rows [S, N, R]."""
  return data._replace(
    train=Rows(*(leaf[place] for leaf in data.train)),
    test=Rows(*(leaf[place] for leaf in data.test)),
  )


def pool(data: FederatedData, steps: int) -> FederatedData:
  """All clients of each seed as one with a budget, rows [S, 1, R]."""
  seeds = range(data.train.count.shape[0])
  each = [pooled(of_seed(data, s)) for s in seeds]
  return each[0]._replace(
    train=_stack([one.train for one in each]),
    test=_stack([one.test for one in each]),
    budget=jnp.full(1, steps, jnp.int32),
  )


def _stack(rows: Sequence[Rows], width: int = 0) -> Rows:
  """Rows [N, R_s] of each seed as [S, N, R], R the largest of all."""
  width = max(width, *(row.index.shape[1] for row in rows))
  index = [
    jnp.pad(row.index, ((0, 0), (0, width - row.index.shape[1])))
    for row in rows
  ]
  return Rows(jnp.stack(index), jnp.stack([row.count for row in rows]))
