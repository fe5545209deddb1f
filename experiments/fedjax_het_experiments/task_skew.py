"""Does skew over a task's own features hurt FedAvg more than skew over labels?

The claim of arXiv:2503.14553: what is non-IID depends on the task, and clients
that differ in the clusters of the task's embeddings cost FedAvg up to 60 % more
loss than clients that differ in labels.  Here at equal client sizes, with the
same examples dealt in every partition, the same Dirichlet alpha for each class
and each cluster, and on held-out data; the published code mixes in skew of
sizes and evaluates on training data.

Declared beforehand: an open question; for classification label skew should be
worse, for the regressions the difference should be within 5 %.

Command:
  fedjax-het task_skew --flagfile=task_skew.fashion_mnist
Minutes: 10 on two idle cores (17 of CPU time; 64 on a machine full of others').
Expected, of the losses under embedding skew over label skew at alpha 0.1 and
0.01: classification 0.83 and 0.72 (FAIL, as declared), inpainting 1.01 and 0.97
(NULL, as declared), rotation 1.09 and 1.14 (PASS, not as declared).
"""

import pathlib
import time

from absl import flags

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.data import sources
from fedjax_het.data.tasks import TASKS
from fedjax_het.selection import check_cohort_size
from fedjax_het_experiments import _flags, _task_skew_report
from fedjax_het_experiments._task_skew_runs import Schedule, pool, study

_TASKS = flags.DEFINE_list(
  "task_skew_tasks",
  ["classification", "inpainting", "rotation"],
  f"What is learnt, any of {', '.join(TASKS)}.",
)
_ALPHAS = flags.DEFINE_list(
  "task_skew_alphas",
  ["0.1", "0.01"],
  "Dirichlet concentrations, of each class or cluster (not their total).",
)
_CLUSTERS = flags.DEFINE_integer(
  "task_skew_clusters", 10, "Clusters of the features.", lower_bound=2
)
_SIZE = flags.DEFINE_integer(
  "task_skew_size", 70, "Examples of each client.", lower_bound=2
)
_BATCH = flags.DEFINE_integer(
  "task_skew_batch", 10, "Examples in a local batch.", lower_bound=1
)
_EPOCHS = flags.DEFINE_integer(
  "task_skew_epochs", 5, "Local epochs per round.", lower_bound=1
)
_EMBED_EPOCHS = flags.DEFINE_integer(
  "task_skew_embed_epochs",
  10,
  "Epochs of the central training that gives the features.",
  lower_bound=1,
)
_TUNE_SEEDS = flags.DEFINE_integer(
  "task_skew_tune_seeds",
  2,
  "Seeds per learning rate while tuning; 0: no tuning, the third rate.",
  lower_bound=0,
)

_TAKEN = {
  *("dataset", "num_clients", "cohort_size", "rounds", "eval_every", "seeds"),
  *("resume", "overwrite", "tensorboard"),
}
_RATES = (0.0003, 0.001, 0.003, 0.01)  # of the clients' Adam, for every arm


def alphas(texts: list[str]) -> tuple[float, ...]:
  """The concentrations as different numbers > 0, or a `UserError`."""
  try:
    values = tuple(float(text) for text in texts)
  except ValueError:
    values = ()
  bad = [v for v in values if not 0 < v < float("inf")]
  if not values or bad or len({f"{v:g}" for v in values}) < len(values):
    raise UserError(
      f"--task_skew_alphas={','.join(texts)}: give different numbers > 0, e.g. "
      "0.1,0.01"
    )
  return values


def main(argv: list[str]) -> None:
  del argv
  started = time.monotonic()
  tasks = _TASKS.value
  for task in tasks:
    if task not in TASKS:
      raise unknown("task", task, TASKS)
  if not tasks or len(set(tasks)) < len(tasks):
    raise UserError("--task_skew_tasks: give at least one task, each once")
  clients = _flags.NUM_CLIENTS.value
  check_cohort_size(_flags.COHORT_SIZE.value, clients)
  if _flags.ROUNDS.value % _flags.EVAL_EVERY.value:
    raise UserError(
      f"--rounds={_flags.ROUNDS.value} is no multiple of "
      f"--eval_every={_flags.EVAL_EVERY.value}: change one of them"
    )
  dataset = sources.load(_flags.DATASET.value, _flags.DATA_DIR.value)
  needed = clients * _SIZE.value
  if needed > len(dataset.train_y):
    raise UserError(
      f"{clients} clients with {_SIZE.value} examples each need {needed}, "
      f"{dataset.name} has {len(dataset.train_y)}: change --num_clients or "
      "--task_skew_size"
    )
  decisive = (
    _flags.DATASET,
    _flags.NUM_CLIENTS,
    _flags.COHORT_SIZE,
    _flags.EVAL_EVERY,
    _ALPHAS,
    _CLUSTERS,
    _SIZE,
    _BATCH,
    _EPOCHS,
    _EMBED_EPOCHS,
  )
  schedule = Schedule(
    num_clients=clients,
    size=_SIZE.value,
    alphas=alphas(_ALPHAS.value),
    num_clusters=_CLUSTERS.value,
    cohort_size=_flags.COHORT_SIZE.value,
    rounds=_flags.ROUNDS.value,
    eval_every=_flags.EVAL_EVERY.value,
    batch=_BATCH.value,
    epochs=_EPOCHS.value,
    embed_epochs=_EMBED_EPOCHS.value,
    seeds=_flags.SEEDS.value,
    tune_seeds=_TUNE_SEEDS.value,
    workdir=pathlib.Path(_flags.WORKDIR.value),
    config={flag.name: flag.value for flag in decisive},
    options={
      "resume": _flags.RESUME.value,
      "overwrite": _flags.OVERWRITE.value,
      "tensorboard": _flags.TENSORBOARD.value,
    },
  )
  outcomes = {task: study(task, dataset, schedule, _RATES) for task in tasks}
  labels = [
    dataset.train_y[pool(dataset, schedule, seed)] for seed in schedule.seeds
  ]
  _task_skew_report.write_report(
    schedule.workdir,
    f"Label skew and embedding skew on {dataset.name}",
    outcomes,
    labels,
    schedule.alphas,
    seconds=time.monotonic() - started,
    notes=[
      f"{clients} clients of {_SIZE.value} examples, {schedule.cohort_size} in "
      f"a round, {schedule.rounds} rounds of {schedule.epochs} local epochs "
      f"in batches of {schedule.batch}; every partition of a seed deals the "
      f"same {needed} examples.  Clusters: {schedule.num_clusters}, k-means of "
      f"the inner layer of a network trained centrally on 80 % of them for "
      f"{schedule.embed_epochs} epochs.  Tuning: for every task and partition "
      f"the best of {len(_RATES)} rates by the loss on the clients' own test "
      f"splits, over {schedule.tune_seeds} other seeds (0: the third).",
    ],
  )


if __name__ == "__main__":
  _flags.run(
    main,
    unused=set(_flags.OF_A_RUN) - _TAKEN,
    num_clients=20,
    cohort_size=20,
    rounds=20,
    eval_every=5,
    seeds=5,
  )
