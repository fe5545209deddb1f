"""FlexSP's program against exhaustive search, and beside `shapes`."""

import numpy as np
import pytest
from tiny_plans import Tiny, best_barrier

from fedjax_het.seqpar import lengths as length_lists
from fedjax_het.seqpar import presets
from fedjax_het.seqpar.plan import plan, validate

ONE_STEP = Tiny(b=1000.0)  # a second micro-batch never pays


@pytest.mark.parametrize(
  "lengths", [(9, 3, 3, 5, 7), (14, 8, 6, 2), (26, 3), (4, 4, 4, 4, 4, 4)]
)
def test_solves_a_micro_batch(lengths, capfd):
  cluster, model = ONE_STEP.cluster(), ONE_STEP.model()
  made = plan(lengths, cluster, model, "milp", more_steps=0)
  assert made.seconds == pytest.approx(best_barrier(lengths, ONE_STEP))
  assert made.details["proven"] == made.num_steps == 1
  slack = 1e-3 * made.seconds
  assert made.details["relaxation"] <= made.details["dual_bound"] + slack
  assert made.details["dual_bound"] <= made.seconds + slack
  validate(made, cluster, model)
  assert capfd.readouterr().out == ""  # HiGHS keeps to itself


def test_buckets_count_as_their_longest_and_hold_the_real_ones():
  """Two buckets of 12 sequences: valid, and the plan is of the real lengths."""
  cluster, model = ONE_STEP.cluster(), ONE_STEP.model()
  lengths = [1, 1, 2, 1, 2, 1, 8, 7, 1, 2]
  made = plan(lengths, cluster, model, "milp", buckets=2, more_steps=0, seed=1)
  validate(made, cluster, model)
  exact = plan(lengths, cluster, model, "milp", buckets=10, more_steps=0)
  assert exact.seconds <= made.seconds * (1 + 1e-6)


def test_without_time_the_start_is_kept():
  cluster, model = presets.a100_cluster(), presets.gpt("7b")
  lengths = np.random.default_rng(0).integers(500, 20_000, 30)
  made = plan(lengths, cluster, model, "milp", time_limit=0.0, more_steps=0)
  validate(made, cluster, model)
  assert made.details["proven"] == 0


@pytest.mark.slow
def test_shapes_is_not_worse_with_ten_seconds_for_each_micro_batch():
  cluster, model = presets.a100_cluster(), presets.gpt("7b")
  degrees = [2, 4, 8, 16, 32, 64]
  batch = length_lists.batches(
    "commoncrawl_like", context=192, num_devices=64, num_batches=2
  )[1]
  program = plan(batch, cluster, model, "milp", degrees=degrees, more_steps=0)
  validate(program, cluster, model, degrees)
  ours = plan(batch, cluster, model, "shapes", degrees=degrees)
  assert ours.seconds <= program.seconds
