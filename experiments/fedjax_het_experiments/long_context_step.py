"""Long-context training steps under several plans: same losses, what time?

Trains a small transformer on real text of very unequal lengths (definitions in
Python's own library, byte by byte), once for each arm PLANNER/FORM: which
planner, and whether one program runs every plan ("single") or each group has a
program of its own ("groups").  The next step's plan is made on the host while
the devices compute.

Every arm sees the same batches from the same parameters, so the losses must
agree whatever the plan.  The batches come twice: in the first pass programs are
compiled, the second counts.  Forced CPU devices share the cores: time is then
the sum of all devices' work, not the slowest device's, and plans differ by
their overhead and padding, not by the speed-up that `plan_bench` models.  With
--devices=auto every device has a core of its own.

Command: fedjax-het long_context_step
Minutes: 4 on two busy cores, 2.5 of CPU time, a third of it compilation (which
is cached).
Expected: equal losses in all arms (PASS), no compilation in the second pass
(PASS), and only the first step waits for its plan (PASS).
"""

import pathlib
import time
from collections.abc import Sequence

import numpy as np
import optax
from absl import flags

from fedjax_het.core.errors import UserError
from fedjax_het.models.transformer import Shape, transformer
from fedjax_het.seqpar import step
from fedjax_het.training.files import write_json_atomic
from fedjax_het.training.metrics import MetricsWriter
from fedjax_het.training.progress import RunProgress
from fedjax_het_experiments import _flags, _texts
from fedjax_het_experiments._plan_arms import Setting, check_arm, run_arm
from fedjax_het_experiments._plan_report import write_plan_report

_ARMS = flags.DEFINE_list(
  "long_context_step_arms",
  ["static/single", "shapes/single", "tree/single", "static/groups"],
  "PLANNER/FORM of each arm; forms are single and groups.",
)
_TOKENS = flags.DEFINE_integer(
  "long_context_step_tokens",
  512,
  "Tokens that a device can hold; the longest document has as many a device.",
  lower_bound=16,
)
_BATCH = flags.DEFINE_integer(
  "long_context_step_batch", 32, "Documents of a step.", lower_bound=1
)
_BATCHES = flags.DEFINE_integer(
  "long_context_step_batches",
  4,
  "Batches, each trained on twice.",
  lower_bound=1,
)
_RATE = flags.DEFINE_float(
  "long_context_step_rate", 3e-3, "Adam's learning rate.", lower_bound=0.0
)
_LAYERS = flags.DEFINE_integer(
  "long_context_step_layers", 2, "Layers of the transformer.", lower_bound=1
)
_HEADS = flags.DEFINE_integer(
  "long_context_step_heads",
  4,
  "Heads of the transformer, half as many for keys and values: the largest "
  "power of two that divides it is the largest all-to-all.",
  lower_bound=2,
)
_RUNGS = flags.DEFINE_integer(
  "long_context_step_rungs",
  1,
  "Sizes of a device's share that are compiled: more pad less.",
  lower_bound=1,
)
_SEED = flags.DEFINE_integer(
  "long_context_step_seed",
  0,
  "Of the first parameters and of which documents are drawn.",
  lower_bound=0,
)


def main(argv: list[str]) -> None:
  del argv
  started = time.monotonic()
  names = list(dict.fromkeys(_ARMS.value))
  for name in names:
    check_arm(name)
  workdir = pathlib.Path(_flags.WORKDIR.value)
  metrics = workdir / "metrics.jsonl"
  if metrics.exists() and not _flags.OVERWRITE.value:
    raise UserError(
      f"{str(workdir)!r} already holds results: --overwrite to start again, or "
      "choose another --workdir"
    )
  setting, found = make_setting()
  workdir.mkdir(parents=True, exist_ok=True)
  metrics.unlink(missing_ok=True)
  decisive = (
    _ARMS,
    _TOKENS,
    _BATCH,
    _BATCHES,
    _RATE,
    _LAYERS,
    _HEADS,
    _RUNGS,
    _SEED,
  )
  config = {flag.name: flag.value for flag in decisive}
  config |= {"devices": setting.mesh.size, "data_dir": _flags.DATA_DIR.value}
  write_json_atomic(workdir / "config.json", config)
  arms = []
  with MetricsWriter(metrics) as writer:
    for name in names:
      steps = 2 * len(setting.batches)
      with RunProgress(steps, name=name) as progress:

        def view(steps, name=name, progress=progress):
          writer.write([record(name, steps)])
          progress.update(len(steps), [{"loss": steps[-1].loss}])

        arms.append(run_arm(name, setting, view))
  write_plan_report(workdir, arms, setting, found, time.monotonic() - started)


def make_setting() -> tuple[Setting, str]:
  """The setting of the flags, and what is in its batches in words."""
  mesh = step.buddy_mesh()
  if mesh.size & (mesh.size - 1):
    raise UserError(f"{mesh.size} devices: planners want a power of two")
  longest = _TOKENS.value * mesh.size
  texts = _texts.documents(_flags.DATA_DIR.value, longest)
  batches = _texts.batches(texts, _BATCH.value, _BATCHES.value, _SEED.value)
  lengths = [len(document) for batch in batches for document in batch]
  low, median, high = np.percentile(lengths, [5, 50, 95])
  heads = _HEADS.value
  shape = Shape(
    layers=_LAYERS.value,
    heads=heads,
    kv_heads=max(1, heads // 2),
    head_width=16,
  )
  model = transformer(shape)
  setting = Setting(
    model=model,
    optimizer=optax.adam(_RATE.value),
    mesh=mesh,
    capacity=_TOKENS.value,
    limit=step.ulysses_limit(model),
    rungs=_RUNGS.value,
    batches=batches,
    seed=_SEED.value,
  )
  found = (
    f"{len(batches)} batches of {_BATCH.value} documents, {sum(lengths)} bytes "
    f"in all; lengths {low:.0f} / {median:.0f} / {high:.0f} (5 / 50 / 95 %), "
    f"longest {max(lengths)} of {longest} that fit"
  )
  return setting, found


def record(name: str, steps: Sequence) -> dict:
  """The line of the last step in metrics.jsonl."""
  last = steps[-1]
  return {
    "arm": name,
    "step": len(steps),
    "loss": last.loss,
    "seconds": last.seconds,
    "cpu_seconds": last.cpu_seconds,
    "tokens": last.tokens,
    "tokens_per_s": last.tokens / last.seconds,
    "computed_tokens": last.computed,
    "compilations": last.compilations,
    "compile_seconds": last.compile_seconds,
    "micro_batches": last.plan.num_steps,
    "groups": len(last.plan.tasks),
    "modelled_seconds": last.plan.seconds,
    "modelled_bound": last.plan.lower_bound,
    "plan_seconds": last.ready.seconds,
    "plan_cpu_seconds": last.plan_cpu_seconds,
    "plan_waited": last.ready.waited,
  }


if __name__ == "__main__":
  _flags.run(
    main,
    devices=8,
    unused=set(_flags.OF_A_RUN) - {"overwrite"},
  )
