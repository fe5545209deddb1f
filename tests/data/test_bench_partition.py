"""The benchmark of the partitioners runs (its timings are not tested)."""

import numpy as np
from absl.testing import flagsaver

from fedjax_het_experiments import bench_partition


def test_every_partitioner_is_measured(capsys):
  from fedjax_het.data.partition import PARTITIONERS

  times = bench_partition.ours(np.arange(3000) % 10, 20, 1)
  measured = {name.partition(":")[0] for name in times}
  assert set(PARTITIONERS) <= measured
  assert all(0 < value < 60 for value in times.values())


def test_the_table_is_printed(capsys):
  with flagsaver.flagsaver(
    partition_rows=2000,
    partition_clients=20,
    partition_repeats=1,
    partition_flwr=False,
  ):
    bench_partition.main(["bench_partition"])
  assert "inner_dirichlet" in capsys.readouterr().out
