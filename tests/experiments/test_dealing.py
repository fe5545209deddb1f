"""One data set dealt for several seeds, each with views and concepts."""

import pathlib

import numpy as np
import pytest

from fedjax_het import models
from fedjax_het.data import concept, feature_skew, partition, sources
from fedjax_het.data.federated import federate
from fedjax_het_experiments._dealing import deal, pool
from fedjax_het_experiments._setting import Setting

CLIENTS, SEEDS = 20, (3, 4)


def _setting(**options):
  dataset = sources.load("digits")
  return Setting(
    dataset,
    "inner_dirichlet:0.5",
    CLIENTS,
    models.build("mlp", (8, 8, 1), 10),
    cohort_size=5,
    rounds=4,
    eval_every=2,
    workdir=pathlib.Path("unused"),
    config={},
    **options,
  )


@pytest.mark.parametrize("skewed", [False, True])
def test_each_seed_is_what_it_would_be_alone(skewed):
  views = feature_skew.parse("rotation:0/90", CLIENTS)
  concepts = concept.parse("same/reverse", 10, CLIENTS)
  options = {"views": views, "concepts": concepts} if skewed else {}
  setting = _setting(width=200, **options)
  together = deal(setting, SEEDS)
  assert together.train.index.shape == (2, CLIENTS, 200)
  copies = len(SEEDS) if skewed else 1
  assert together.examples.y.shape[0] == copies * len(setting.dataset.train_y)
  for s, seed in enumerate(SEEDS):
    parts = partition.parse(
      setting.partition, setting.dataset.train_y, CLIENTS, seed
    )
    alone = federate(setting.dataset, parts, seed=seed)
    if skewed:
      alone = feature_skew.apply(alone, views, heldout="share")
      alone = concept.apply(alone, concepts, heldout="share")
    for split in ("train", "test"):
      ours, theirs = getattr(together, split), getattr(alone, split)
      np.testing.assert_array_equal(ours.count[s], theirs.count)
      for k, count in enumerate(np.asarray(theirs.count)):
        for leaf, other in zip(together.examples, alone.examples, strict=True):
          np.testing.assert_array_equal(
            np.asarray(leaf)[np.asarray(ours.index)[s, k, :count]],
            np.asarray(other)[np.asarray(theirs.index)[k, :count]],
          )
    np.testing.assert_array_equal(together.heldout.y, alone.heldout.y)


def test_a_pool_holds_everybodys_rows():
  dealt = deal(_setting(), SEEDS)
  data = pool(dealt, steps=7)
  assert data.train.count.shape == (2, 1) and data.budget.tolist() == [7]
  for s in range(2):
    rows = [
      row
      for k, count in enumerate(np.asarray(dealt.train.count[s]))
      for row in np.asarray(dealt.train.index[s, k, :count])
    ]
    count = int(data.train.count[s, 0])
    pooled = np.asarray(data.train.index[s, 0, :count])
    np.testing.assert_array_equal(np.sort(pooled), np.sort(rows))
