"""Any set of algorithms x partitions x seeds on one data set: one table.

Every method tries six trials (rates, or rates x its own knob: `_shelf.py`) on a
tuning seed of each partition, by the clients' own test splits, then runs on
fresh seeds; the table shows final rounds.  All trials, and all seeds, of a
method are one program.  --resume goes on after a kill, also inside a run.

Command:
  fedjax-het compare --flagfile=compare.fashion_mnist
Minutes: see experiments/README.md (measured).
Expected: on IID-like data nobody beats FedAvg; with two classes a client the
personal methods win by far, and fine-tuned FedAvg is the one to beat.
"""

import re
import time

from absl import flags
from rich.console import Console

from fedjax_het import models
from fedjax_het.core.errors import UserError
from fedjax_het.data import partition, sources
from fedjax_het_experiments import _compare_report, _flags, _shelf
from fedjax_het_experiments._comparison import compare, widest
from fedjax_het_experiments._setting import from_flags

_ALGORITHMS = flags.DEFINE_list(
  "algorithms",
  ["fed_avg", "fed_prox", "scaffold", "local_only", "fine_tuned"],
  "Names of methods (experiments/_shelf.py), or all.",
)
_PARTITIONS = flags.DEFINE_multi_string(
  "partitions",
  ["inner_dirichlet:0.1", "iid"],
  "Who holds what; give the flag several times.",
)
_TARGET = flags.DEFINE_float(
  "target",
  0.75,
  "Accuracy to which the report says the virtual time.",
  lower_bound=0.0,
  upper_bound=1.0,
)


def main(argv: list[str]) -> None:
  del argv
  started = time.monotonic()
  names = _ALGORITHMS.value
  if names == ["all"]:
    names = list(_shelf.TUNED)
  dataset = sources.load(_flags.DATASET.value, _flags.DATA_DIR.value)
  model = models.build(
    _flags.MODEL.value, dataset.train_x.shape[1:], dataset.num_classes
  )
  clients = _flags.NUM_CLIENTS.value
  batch, epochs = _flags.BATCH_SIZE.value, _flags.LOCAL_EPOCHS.value
  steps = max(round(0.8 * len(dataset.train_y) / clients / batch), 1) * epochs
  methods = _shelf.methods(
    names,
    _shelf.Problem(
      model,
      clients,
      batch,
      epochs,
      cohort_steps=steps * _flags.COHORT_SIZE.value,
    ),
  )
  settings = []
  for spec in _PARTITIONS.value:
    partition.parse(spec, dataset.train_y, clients)  # mistakes come first
    setting = from_flags(dataset, model)
    folder = setting.workdir / re.sub(r"[:,=]", "_", spec)
    config = {**setting.config, "partition": spec}
    settings.append(
      setting._replace(partition=spec, workdir=folder, config=config)
    )
  if len({setting.workdir for setting in settings}) < len(settings):
    raise UserError("a partition is given twice: give each once")
  seeds, tune = _flags.SEEDS.value, _flags.TUNE_SEEDS.value
  width = max(widest(setting, seeds, tune) for setting in settings)
  columns = []
  for setting in settings:
    arms, rates = compare(
      setting._replace(width=width), methods, seeds=seeds, tune_seeds=tune
    )
    columns.append(
      _compare_report.Column(
        setting.partition, {arm.name: arm for arm in arms}, rates
      )
    )
  path = _compare_report.write(
    settings[0].workdir.parent,
    f"{len(methods)} methods on {dataset.name}",
    columns,
    seconds=time.monotonic() - started,
    target=_TARGET.value,
    notes=[
      f"{clients} clients, {_flags.COHORT_SIZE.value} a round, "
      f"{_flags.ROUNDS.value} rounds of {epochs} local epochs in "
      f"batches of {batch}, {_flags.MODEL.value}, {len(seeds)} seeds. Each "
      f"method tried six trials of {tune} tuning seeds on each partition (0: "
      "none), judged by the clients' own test splits; where the trials with a "
      "knob were chosen, the table says rate, knob. Centralised training may "
      "do as many steps a round as a whole cohort."
    ],
  )
  Console().print(f"report: {path}", markup=False, soft_wrap=True)


if __name__ == "__main__":
  _flags.run(main, unused=("partition",))
