"""Client-updates per second of the engine beside its obvious rivals.

Fashion-MNIST, 1000 clients x 60 examples (Dirichlet 0.3 within each), one local
epoch, batch 20, SGD 0.1; the FedAvg CNN (1.66 M parameters) and an MLP
784-64-10; cohorts of 10, 100 and 1000.  Rivals: jit(vmap(scan)), a Python loop
over a jitted client, and, where torch is, a plain PyTorch loop in one process
and in one process a core.  All contestants of a point wait in processes of
their own and take turns, so that a ratio compares the same minutes.

Command:
  fedjax-het bench_engine [--bench_engine_torch=/path/to/python-with-torch]
Minutes: about 40 with the CNN, 6 with --bench_engine_models=mlp (two cores).
Expected: experiments/results/bench_engine/.
"""

import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from absl import flags

from fedjax_het.core.errors import UserError
from fedjax_het.data import partition, sources
from fedjax_het_experiments import _flags
from fedjax_het_experiments._bench_report import write_bench

_MODELS = flags.DEFINE_list("bench_engine_models", ["mlp", "cnn"], "Networks.")
_COHORTS = flags.DEFINE_list(
  "bench_engine_cohorts", ["10", "100", "1000"], "Cohort sizes."
)
_REPEATS = flags.DEFINE_integer(
  "bench_engine_repeats", 5, "Warm timings of each; the median counts."
)
_TORCH = flags.DEFINE_string(
  "bench_engine_torch",
  None,
  "A Python with torch; default: this one, if torch is installed.",
)
_SKIP = flags.DEFINE_list(
  "bench_engine_skip", [], "Contestants to leave out, e.g. vmap."
)

# Forward and backward of three batches of 20: 2 flops a multiply-add, three
# matmuls a layer less the first layer's input gradient.
GFLOP = {"mlp": 0.01227, "cnn": 4.343}
FOLDER = pathlib.Path(__file__).parent


class Result(NamedTuple):
  """seconds: of each warm round.

  rest: first_s (compilation and a round), peak_mb, data_mb.
  """

  seconds: list[float]
  rest: dict[str, float]


def contestants(path: str, model: str, cohort: int, torch: str | None):
  """Name -> command line."""
  module = "fedjax_het_experiments._bench_jax"
  jax_command = [sys.executable, "-m", module, path, model, str(cohort)]
  commands = {who: [*jax_command, who] for who in ("ours", "vmap", "loop")}
  if torch:
    script = [torch, str(FOLDER / "_bench_torch.py"), path, model, str(cohort)]
    cores = str(_flags.usable_cores())
    commands["torch"] = [*script, "1"]
    commands[f"torch x{cores}"] = [*script, cores]
  return {k: v for k, v in commands.items() if k not in _SKIP.value}


def race(commands: dict[str, list[str]], repeats: int) -> dict[str, Result]:
  """Starts all, then lets each run one round in turn, `repeats` times."""
  results, running = {}, {}
  for who, command in commands.items():  # one after another: compiling is work
    process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    ready = _answer(process, who)
    running[who] = process
    results[who] = Result([], ready)
  for _ in range(repeats):
    for who, process in running.items():
      results[who].seconds.append(_ask(process, who, "go")["seconds"])
  for who, process in running.items():
    results[who].rest.update(_ask(process, who, "end"))
    process.wait()
  return results


def _ask(process, who, line):
  process.stdin.write(line + "\n")
  process.stdin.flush()
  return _answer(process, who)


def _answer(process, who):
  line = process.stdout.readline()
  if not line:
    raise UserError(f"{who} ended early with code {process.wait()}: see above")
  return json.loads(line)


def sgemm_peak() -> float:
  """GFLOP/s of a large float32 matmul on all cores, the best of several."""
  a = np.random.default_rng(0).random((2048, 2048), np.float32)
  best = float("inf")
  for _ in range(8):
    start = time.perf_counter()
    a @ a
    best = min(best, time.perf_counter() - start)
  return 2 * 2048**3 / best / 1e9


def write_data(path: str) -> None:
  """1000 clients x 60 examples of Fashion-MNIST as arrays in a file."""
  dataset = sources.load("fashion_mnist", _flags.DATA_DIR.value)
  parts = partition.parse(
    "inner_dirichlet:0.3,size=60", dataset.train_y, 1000, seed=0
  )
  index = np.stack(parts).astype(np.int32)
  np.savez(path, x=dataset.train_x[..., 0], y=dataset.train_y, index=index)


def main(argv: list[str]) -> None:
  del argv
  started = time.monotonic()
  torch = _TORCH.value
  if torch is None and importlib.util.find_spec("torch"):
    torch = sys.executable
  peak, points = sgemm_peak(), []
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "data.npz")
    write_data(path)
    for model in _MODELS.value:
      for cohort in map(int, _COHORTS.value):
        commands = contestants(path, model, cohort, torch)
        for who, result in race(commands, _REPEATS.value).items():
          rate = cohort / statistics.median(result.seconds)
          points.append(
            {
              "model": model,
              "cohort": cohort,
              "who": who,
              "updates_per_s": rate,
              "share_of_peak": rate * GFLOP[model] / peak,
              "round_s": result.seconds,
              **result.rest,
            }
          )
  write_bench(
    "Client-updates per second",
    _HEADINGS,
    list(_rows(points)),
    points,
    seconds=time.monotonic() - started,
    facts={"sgemm peak": f"{peak:.0f} GFLOP/s"},
  )


_HEADINGS = (
  "model",
  "cohort",
  "who",
  "updates/s",
  "ours / this",
  "% of sgemm",
  "first call s",
  "peak MB",
)


def _rows(points):
  ours = {
    (p["model"], p["cohort"]): p["updates_per_s"]
    for p in points
    if p["who"] == "ours"
  }
  for p in points:
    mine = ours.get((p["model"], p["cohort"]))
    yield (
      p["model"],
      str(p["cohort"]),
      p["who"],
      f"{p['updates_per_s']:.4g}",
      f"{mine / p['updates_per_s']:.2f}" if mine else "-",
      f"{100 * p['share_of_peak']:.1f}",
      f"{p['first_s']:.1f}" if "first_s" in p else "-",
      f"{p['peak_mb']:.0f}",
    )


if __name__ == "__main__":
  _flags.run(main, unused=_flags.OF_A_RUN)
