"""The host loop: blocks of rounds on the device, everything else in between.

After each block its metrics are appended, then the state is saved.  In this
order a kill at any moment leaves a checkpoint and at least the metrics up to
it; resuming drops what lies beyond, so nothing is lost but the block that was
running, and the end is the same bit for bit.
"""

import contextlib
import fcntl
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import PyTree
from fedjax_het.training import metrics
from fedjax_het.training.checkpoint import Checkpointer
from fedjax_het.training.files import storage_errors, write_json_atomic
from fedjax_het.training.metrics import Record
from fedjax_het.training.progress import RunProgress
from fedjax_het.training.signals import GracefulStop, Interrupted

CONFIG, METRICS = "config.json", "metrics.jsonl"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"


class RunResult(NamedTuple):
  """What a run gives.

  state: after the last round.
  records: all lines of metrics.jsonl, also those from before a resume.
  seconds: wall time of this call.
  """

  state: PyTree
  records: list[Record]
  seconds: float


def train(
  block: Callable[[PyTree, PyTree], tuple[PyTree, Mapping[str, Any]]],
  state: PyTree,
  data: PyTree | Callable[[int], PyTree],
  *,
  rounds_per_block: int,
  num_blocks: int,
  workdir: str | os.PathLike,
  config: Mapping[str, Any],
  resume: bool = False,
  overwrite: bool = False,
  progress: str = "auto",
  tensorboard: bool = False,
  clients_per_round: int | None = None,
  num_seeds: int | None = None,
  best_metric: str | None = None,
  name: str = "train",
  summarise: Callable[[Any], Mapping[str, Any]] = metrics.summarise_cohort,
  jit: bool = True,
  save_seconds: float = 0.0,
) -> RunResult:
  """Runs `num_blocks` blocks and keeps their results in `workdir`.

  It writes config.json, metrics.jsonl, checkpoints/ (latest, best) and
  tensorboard/.  SIGTERM and Ctrl-C let the block finish and be saved.

  Args:
    block: (state, data) -> (state, {"rounds": tree [R, ...], "eval": dict}),
      pure, jitted here (see `core.rounds.make_block`); with `num_seeds` every
      array of state and history has a leading axis [S].
    state: the first state; donated, so not usable afterwards.
    data: passed to `block` as it is; or a function of the number of the block
      (from 0) that gives it, for data that drift.  It must depend on nothing
      else (a resumed run begins with a later block) and give the same shapes
      and dtypes for every block (others are compiled anew).
    rounds_per_block: R.
    num_blocks: how many blocks in all, those before a resume included.
    workdir: a folder for this run alone.
    config: what makes this run this run, JSON-like; `resume` refuses another.
    resume: go on from the latest checkpoint, or start if there is none.
    overwrite: delete the results that are there and start again.
    progress: "auto", "bar", "plain" or "quiet".
    tensorboard: also write event files.
    clients_per_round: client updates a round over all seeds, for clients/s.
    num_seeds: S, or None if there is no axis of seeds.
    best_metric: name of a record, e.g. "eval/accuracy" (mean over seeds); the
      state where it is highest is kept beside the latest.
    name: shown in the progress.
    summarise: what is logged of history["rounds"]: on the host, tree
      [(S,) R, ...] -> dict of arrays [(S,) R, ...].
    jit: False for a block that runs on the host and jits its own parts.
    save_seconds: between two checkpoints at least, for blocks that take less
      time than a checkpoint does; the last block and one that a signal stops
      are always saved.  What a kill loses is trained again.

  Returns:
    A `RunResult`; of a finished run, at once.

  Raises:
    UserError: results that are in the way, a checkpoint of another
      configuration, a full disk, a workdir in use by another process; more
      than one process under jax.distributed.
    Interrupted: after a signal; exits with 128 + its number.
  """
  if jax.process_count() > 1:
    raise UserError(
      f"training.run.train is for one process, and this is one of"
      f" {jax.process_count()}: jit core.rounds.make_block yourself (see"
      " tests/core/two_processes.py), or run one process over local devices"
    )
  started = time.monotonic()
  workdir = pathlib.Path(workdir)
  total = rounds_per_block * num_blocks
  with contextlib.ExitStack() as stack:
    stack.enter_context(_own(workdir))
    _prepare(workdir, resume, overwrite)
    checkpoints = stack.enter_context(
      Checkpointer(workdir / CHECKPOINTS, config, best_metric)
    )
    done, state = _restore(checkpoints, state) if resume else (0, state)
    _check_fit(workdir, done, total, rounds_per_block)
    write_json_atomic(workdir / CONFIG, config)
    writer = stack.enter_context(
      metrics.MetricsWriter(
        workdir / METRICS,
        workdir / TENSORBOARD if tensorboard else None,
        first_round=done + 1,
        num_seeds=num_seeds,
      )
    )
    if done == total:
      return _result(workdir, state, started)
    view = stack.enter_context(
      RunProgress(
        total,
        name=name,
        mode=progress,
        clients_per_round=clients_per_round,
        first_round=done,
      )
    )
    stop = stack.enter_context(GracefulStop(view.message))
    step = jax.jit(block, donate_argnums=0) if jit else block
    data_of = data if callable(data) else lambda number: data
    saved = -math.inf
    while done < total:
      state, history = step(state, data_of(done // rounds_per_block))
      history = jax.device_get(history)
      records = metrics.block_records(
        summarise(history["rounds"]),
        history["eval"],
        first_round=done + 1,
        num_rounds=rounds_per_block,
        num_seeds=num_seeds,
      )
      done += rounds_per_block
      writer.write(records)
      stopped, now = stop.signum, time.monotonic()
      if stopped or done == total or now - saved >= save_seconds:
        saved = now
        checkpoints.save(done, state, _best(records, best_metric))
      if warning := dropped_warning(records):
        view.message(warning)
      view.update(done, records)
      if stopped:
        view.message(
          f"stopped and saved after round {done} of {total}: the same command "
          f"with --resume goes on ({workdir})"
        )
        raise Interrupted(stopped)
  return _result(workdir, state, started)


def dropped_warning(records: list[Record]) -> str | None:
  """One line about the uploads that a block dropped, None if it dropped none.

  Args:
    records: of a block; "dropped" counts uploads, "dropped_clients" may name
      their clients (both may be nested in lists over seeds).
  """
  hit = [r for r in records if any(_flat(r.get("dropped", 0)))]
  if not hit:
    return None
  count = sum(sum(_flat(r["dropped"])) for r in hit)
  ids = sorted({i for r in hit for i in _flat(r.get("dropped_clients", []))})
  first, last = hit[0]["round"], hit[-1]["round"]
  where = f"round {first}" if first == last else f"rounds {first}-{last}"
  text = f"{where}: dropped {count} upload{'s' * (count > 1)}"
  if ids:
    text += f" of client{'s' * (len(ids) > 1)} " + ", ".join(map(str, ids[:8]))
    text += ", ..." * (len(ids) > 8)
  return text + " (NaN or Inf)"


@contextlib.contextmanager
def _own(workdir: pathlib.Path) -> Iterator[None]:
  """Makes the folder and holds it: two runs in one would mix their results.

  The lock is the kernel's, so a killed run holds nothing.
  """
  with storage_errors(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    lock = os.open(workdir, os.O_RDONLY)
  try:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f"another process is writing to {str(workdir)!r}: wait for it, stop "
        "it, or choose another --workdir"
      ) from None
    except OSError:  # a file system without locks: trust the user
      pass
    yield
  finally:
    os.close(lock)


def _prepare(workdir: pathlib.Path, resume: bool, overwrite: bool) -> None:
  """Refuses or deletes the results that are there."""
  if resume and overwrite:
    raise UserError("--resume and --overwrite exclude each other: give one")
  if overwrite:
    # Renamed first: a half-deleted folder must not look like checkpoints.
    old = workdir / f".{CHECKPOINTS}.old"
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
      os.rename(workdir / CHECKPOINTS, old)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(workdir / TENSORBOARD, ignore_errors=True)
    (workdir / METRICS).unlink(missing_ok=True)
  elif not resume and (
    (workdir / METRICS).exists() or (workdir / CHECKPOINTS).exists()
  ):
    raise UserError(
      f"{str(workdir)!r} already holds results: --resume to go on, --overwrite "
      "to start again, or choose another --workdir"
    )


def _restore(checkpoints: Checkpointer, state: PyTree) -> tuple[int, PyTree]:
  if checkpoints.latest_step() is None:
    return 0, state
  step, restored = checkpoints.restore(state)
  return step, jax.tree.map(_as_free, restored, state)


def _as_free(leaf: jax.Array, like: jax.Array) -> jax.Array:
  """`leaf` bound to devices only if `like` is: orbax binds what it restores.

  A state that is bound to one device and data that are replicated over all of
  them cannot meet in one program.
  """
  if like.committed:
    return leaf
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    words = jnp.asarray(np.asarray(jax.random.key_data(leaf)))
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
  return jnp.asarray(np.asarray(leaf))


def _check_fit(
  workdir: pathlib.Path, done: int, total: int, rounds_per_block: int
) -> None:
  """Cuts the metrics back to the checkpoint and checks that they fit it."""
  path = workdir / METRICS
  if done > total or done % rounds_per_block:
    raise UserError(
      f"the checkpoint in {str(workdir)!r} is of round {done}, which blocks of "
      f"{rounds_per_block} up to round {total} do not meet: give the number of "
      "rounds and the block it was made with, or --overwrite"
    )
  metrics.truncate_after(path, done)
  kept = metrics.read_jsonl(path) if path.exists() else []
  if done and (not kept or kept[-1]["round"] != done):
    raise UserError(
      f"{str(path)!r} does not reach round {done} of the checkpoint: restore "
      "the file, or start again with --overwrite"
    )


def _result(workdir: pathlib.Path, state: PyTree, started: float) -> RunResult:
  records = metrics.read_jsonl(workdir / METRICS)
  return RunResult(state, records, time.monotonic() - started)


def _best(records: list[Record], name: str | None) -> dict[str, float]:
  """The last value of the metric that decides what is best, over seeds."""
  if name is None:
    return {}
  for record in reversed(records):
    if name in record:
      values = [float("nan") if v is None else v for v in _flat(record[name])]
      return {name: sum(values) / len(values)}
  raise unknown("metric", name, {key for r in records for key in r})


def _flat(value: Any) -> list:
  """The numbers in nested lists."""
  if isinstance(value, list):
    return [number for part in value for number in _flat(part)]
  return [value]
