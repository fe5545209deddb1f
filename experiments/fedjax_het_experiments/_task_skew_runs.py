"""One task of `task_skew`: embedder, clusters, partitions, tuning, final runs.

Every seed has its own pool of examples, embedder, clusters, partitions and
initial weights.  All partitions of a seed deal out the same pool, whole, to
clients of the same size: what differs is only who holds what.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from fedjax_het.data import diversity, embedding, partition
from fedjax_het.data.sources import Dataset
from fedjax_het.data.tasks import TASKS
from fedjax_het_experiments._comparison import TUNE_SEEDS
from fedjax_het_experiments._task_skew_sweep import (
  Problem,
  Schedule,
  deal,
  execute,
)

IID, LABEL, EMBEDDING = "IID", "label", "embedding"
_EMBEDDER_RATE = 1e-3  # of Adam


class Curve(NamedTuple):
  """Held-out figures of one partition, E evaluations of S seeds.

  rate: the learning rate that was chosen.
  rounds: i64[E];  loss, score: f64[S, E].
  meters: name -> f64[S], how heterogeneous the partition is.
  """

  rate: float
  rounds: np.ndarray
  loss: np.ndarray
  score: np.ndarray
  meters: dict[str, np.ndarray]


class Outcome(NamedTuple):
  """What one task gave.

  curves: partition ("IID", "label 0.1", ...) -> its runs.
  groups: for each seed, the cluster of each example of its pool.
  embedder: f64[S], held-out loss of the centrally trained network.
  """

  curves: dict[str, Curve]
  groups: list[np.ndarray]
  embedder: np.ndarray


def pool(dataset: Dataset, schedule: Schedule, seed: int) -> np.ndarray:
  """The examples that the clients of a seed hold together, i64[N * size]."""
  rng = np.random.default_rng([seed, 2])  # not the stream of a partition
  size = schedule.num_clients * schedule.size
  return rng.permutation(len(dataset.train_y))[:size]


def study(
  task: str, dataset: Dataset, schedule: Schedule, rates: Sequence[float]
) -> Outcome:
  """Runs one task on all partitions.

  Args:
    task: a key of `TASKS`.
    dataset: the images, with labels.
    schedule: what all tasks share.
    rates: FedAvg's learning rates; each partition takes the one with the least
      loss on the clients' own test splits over the tuning seeds.
  """
  made = TASKS[task].make(dataset, np.random.default_rng(0))
  shape = made.train_x.shape[1:]
  problem = Problem(
    made, *TASKS[task].network(shape, made.num_classes), TASKS[task].measure
  )
  trial = [TUNE_SEEDS + i for i in range(schedule.tune_seeds)]
  seeds = [*trial, *schedule.seeds]
  pools = [pool(dataset, schedule, seed) for seed in seeds]
  labels = [dataset.train_y[rows] for rows in pools]
  kept, embedder = _features(task, problem, schedule, pools, seeds)
  groups = [
    embedding.clusters(z, schedule.num_clusters, seed)
    for z, seed in zip(kept, seeds, strict=True)
  ]
  parts = [
    _partitions(*grouped, schedule, seed)
    for *grouped, seed in zip(labels, groups, seeds, strict=True)
  ]

  def run(phase, chosen, rates):
    """Evaluations of the runs (partition, rate of it, chosen seed)."""
    runs = [
      (arm, rate, i) for arm in parts[0] for rate in rates[arm] for i in chosen
    ]
    own = [seeds[i] for _, _, i in runs]
    dealt = [[pools[i][part] for part in parts[i][arm]] for arm, _, i in runs]
    result = execute(
      problem,
      schedule,
      f"{phase}/{task}",
      deal(dataset, dealt, own),
      [rate for _, rate, _ in runs],
      own,
    )
    return [r for r in result.records if "eval/loss" in r]

  chosen = dict.fromkeys(parts[0], rates[len(rates) // 2])
  if trial:
    last = run("tune", range(len(trial)), dict.fromkeys(parts[0], rates))[-1]
    loss = np.array(last["eval/client_loss"], np.float64).mean(axis=1)
    loss = np.nan_to_num(loss, nan=np.inf).reshape(-1, len(rates), len(trial))
    best = loss.mean(axis=2).argmin(axis=1)
    chosen = {arm: rates[k] for arm, k in zip(parts[0], best, strict=True)}
  final = range(len(trial), len(seeds))
  records = run("final", final, {arm: [chosen[arm]] for arm in parts[0]})
  at = np.array([record["round"] for record in records])
  loss, score = (
    np.stack([np.array(r[name], np.float64) for r in records], axis=-1).reshape(
      len(parts[0]), len(final), len(at)
    )
    for name in ("eval/loss", "eval/accuracy")
  )
  curves = {
    arm: Curve(
      chosen[arm],
      at,
      loss[k],
      score[k],
      _meters([(parts[i][arm], labels[i], groups[i], kept[i]) for i in final]),
    )
    for k, arm in enumerate(parts[0])
  }
  return Outcome(curves, groups[len(trial) :], embedder[len(trial) :])


def _features(task, problem, schedule, pools, seeds):
  """Each seed's features of its pool, and its network's held-out loss.

  Central training is a federation of one client that holds the whole pool.
  """
  central = execute(
    problem,
    schedule._replace(
      cohort_size=1, rounds=1, eval_every=1, epochs=schedule.embed_epochs
    ),
    f"embedder/{task}",
    deal(problem.data, [[rows] for rows in pools], seeds),
    [_EMBEDDER_RATE] * len(seeds),
    seeds,
  )
  params = central.state.train.server.params
  kept = [
    embedding.embed(
      problem.features,
      jax.tree.map(lambda leaf, i=i: leaf[i], params),
      problem.data.train_x[rows],
    )
    for i, rows in enumerate(pools)
  ]
  return kept, np.array(central.records[-1]["eval/loss"], np.float64)


def _partitions(labels, groups, schedule, seed):
  """Partition name -> rows of the pool for each client."""
  size, clients = schedule.size, schedule.num_clients
  made = {IID: partition.parse(f"size:{size}", labels, clients, seed)}
  for alpha in schedule.alphas:
    for kind, kinds in ((LABEL, labels), (EMBEDDING, groups)):
      made[f"{kind} {alpha:g}"] = embedding.embedding_dirichlet(
        kinds, clients, alpha=alpha, size=size, seed=seed
      )
  return made


def _meters(runs):
  """Name -> f64[S] of (parts, labels, groups, features) for each seed."""
  out = {}
  for parts, labels, groups, features in runs:
    of_labels, of_groups = (
      diversity.decompose(diversity.group_counts(parts, kinds))
      for kinds in (labels, groups)
    )
    distance = diversity.frechet(features, parts).mean()
    for name, value in {
      "classes": of_labels.alpha,
      "beta, labels": of_labels.beta,
      "clusters": of_groups.alpha,
      "beta, clusters": of_groups.beta,
      "Frechet": distance / features.var(axis=0, dtype=np.float64).sum(),
    }.items():
      out.setdefault(name, []).append(value)
  return {name: np.array(values) for name, values in out.items()}
