"""Measures the partitioners: seconds to deal 60,000 rows to 1,000 clients.

Command: fedjax-het bench_partition (about 10 s).
Expected: each far below 2 s; measured 0.02-0.09 s on 2 busy CPU cores.
Where flwr-datasets (and the `datasets` package it needs) is installed, its time
stands beside ours and adds 2 minutes: it hands out rows, not indices, so the
time includes reading the labels of all clients (0.6.1: 3.7 s iid, 10 s
dirichlet and shard, 25 s pathological, 59 s inner_dirichlet).
"""

import importlib.util
import os
import time
from collections.abc import Callable

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from fedjax_het.data import federated, partition
from fedjax_het.data.sources import Dataset
from fedjax_het_experiments import _flags

_ROWS = flags.DEFINE_integer(
  "partition_rows", 60_000, "Rows to deal.", lower_bound=1_000
)
_CLIENTS = flags.DEFINE_integer(
  "partition_clients", 1_000, "Clients.", lower_bound=1
)
_CLASSES = flags.DEFINE_integer(
  "partition_classes", 10, "Classes, all of one size.", lower_bound=2
)
_REPEATS = flags.DEFINE_integer(
  "partition_repeats", 5, "Runs of each; the median is shown.", lower_bound=1
)
_FLWR = flags.DEFINE_bool(
  "partition_flwr", True, "Also time flwr-datasets, if it is installed."
)

SPECS = (
  "iid",
  "dirichlet:0.3,min_size=2",
  "dirichlet:0.3,min_size=2,balanced=true",
  "affected_dirichlet:0.3,affected=5",
  "inner_dirichlet:0.3",
  "dual_dirichlet:5,size_alpha=10000,min_size=1",
  "class_shares:low=2,high=3",
  "pathological:2",
  "shard:2",
  "size:60",
  "linear",
  "square",
  "exponential:1.01",
)


def seconds(run: Callable[[], object], repeats: int) -> float:
  """Median wall time of run()."""
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return float(np.median(times))


def ours(labels: np.ndarray, clients: int, repeats: int) -> dict[str, float]:
  """Seconds of each partitioner, and of `federate`."""
  ids = np.random.default_rng(0).permutation(np.arange(labels.size) % clients)
  runs: dict[str, Callable[[], object]] = {
    spec: (lambda spec=spec: partition.parse(spec, labels, clients))
    for spec in SPECS
  }
  runs["natural_id"] = lambda: partition.natural_id(ids)
  runs["grouped_natural_id"] = lambda: partition.grouped_natural_id(ids, 2)
  parts = partition.parse("shard:2", labels, clients)
  x = np.zeros((labels.size, 1), np.float32)
  dataset = Dataset(x, labels, x[:1], labels[:1], 2, "bench", "", "")
  runs["federate (after shard:2)"] = lambda: federated.federate(dataset, parts)
  return {name: seconds(run, repeats) for name, run in runs.items()}


def flwr(labels: np.ndarray, clients: int) -> dict[str, float]:
  """Seconds of flwr-datasets' partitioners, once each; {} if not installed."""
  if importlib.util.find_spec("flwr_datasets") is None:
    return {}
  os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
  import datasets
  from flwr_datasets import partitioner as theirs

  table = datasets.Dataset.from_dict({"label": labels})
  by = {"num_partitions": clients, "partition_by": "label"}
  made = {
    "iid": theirs.IidPartitioner(num_partitions=clients),
    "dirichlet:0.3,min_size=2": theirs.DirichletPartitioner(
      **by, alpha=0.3, min_partition_size=2
    ),
    "inner_dirichlet:0.3": theirs.InnerDirichletPartitioner(
      partition_sizes=[labels.size // clients] * clients,
      partition_by="label",
      alpha=0.3,
    ),
    "pathological:2": theirs.PathologicalPartitioner(
      **by, num_classes_per_partition=2
    ),
    "shard:2": theirs.ShardPartitioner(**by, num_shards_per_partition=2),
  }
  times = {}
  for name, one in made.items():
    one.dataset = table

    def run(one=one):
      for client in range(clients):
        one.load_partition(client)["label"][:]

    times[name] = seconds(run, 1)
  return times


def main(argv: list[str]) -> None:
  del argv
  labels = np.arange(_ROWS.value, dtype=np.int32) % _CLASSES.value
  mine = ours(labels, _CLIENTS.value, _REPEATS.value)
  other = flwr(labels, _CLIENTS.value) if _FLWR.value else {}
  table = Table(
    title=f"{_ROWS.value} rows, {_CLASSES.value} classes, "
    f"{_CLIENTS.value} clients"
  )
  table.add_column("partitioner")
  table.add_column("seconds", justify="right")
  if other:
    table.add_column("flwr-datasets", justify="right")
  for name, value in mine.items():
    cells = [name, f"{value:.4f}"]
    if other:
      cells.append(f"{other[name]:.2f}" if name in other else "")
    table.add_row(*cells)
  Console().print(table)


if __name__ == "__main__":
  _flags.run(main, unused=(*_flags.OF_A_RUN, "workdir", "data_dir", "devices"))
