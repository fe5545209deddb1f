"""Checkpoints: the latest and the best state of a run, whole or absent.

A thin layer over orbax: it writes a step into a temporary folder and renames
it, so a process killed in the middle leaves nothing that `restore` would take.
Beside the state lie the configuration and the shapes and dtypes of the state
as JSON, because orbax would cast another dtype silently, and a checkpoint of
another configuration should be refused in words.
"""

import contextlib
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import PyTree
from fedjax_het.training.files import plain, storage_errors

_PARTIAL = "*.orbax-checkpoint-tmp*"


class Checkpointer:
  """Saves and restores a pytree of arrays, typed PRNG keys included.

  Saves are synchronous and keep two steps at most: the latest, and the best
  if a metric is named.  Use as a context manager, or call `close`.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    config: Mapping[str, Any],
    best_metric: str | None = None,
  ):
    """Opens a folder of checkpoints; it is made at the first save.

    Args:
      directory: the folder.
      config: what makes a run this run, JSON-like; a checkpoint of another
        configuration is refused.
      best_metric: a key of `save`'s metrics; the step where it is highest is
        kept too.
    """
    self._directory = pathlib.Path(directory).absolute()
    self._config = plain(config)
    self._best_metric = best_metric
    self._manager = None

  def __enter__(self) -> "Checkpointer":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def save(
    self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None
  ) -> None:
    """Writes the state of `step`, then deletes what is neither latest nor best.

    Args:
      step: rounds done; must be new.
      state: a pytree of arrays.
      metrics: must hold the best metric, if one was named.

    Raises:
      UserError: if the disk is full or not writable; the checkpoints from
        before are still there, and nothing half-written is.
    """
    import orbax.checkpoint as ocp

    saved = {"config": self._config, "state": _structure(state)}
    best = None
    if self._best_metric is not None:
      best = {self._best_metric: float((metrics or {})[self._best_metric])}
    with storage_errors(self._directory), _quiet_orbax():
      try:
        self._open().save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(saved)
          ),
          metrics=best,
        )
      except BaseException:
        self.close()
        for folder in self._directory.glob(_PARTIAL):
          shutil.rmtree(folder, ignore_errors=True)
        raise

  def restore(
    self, like: PyTree, step: int | None = None
  ) -> tuple[int, PyTree]:
    """Reads a checkpoint, bit for bit.

    Args:
      like: a state with the shapes, dtypes and shardings to restore to.
      step: which one; None for the latest.

    Returns:
      (step, state).

    Raises:
      UserError: if there is none, or it is of another configuration or of a
        program whose state looks different.
    """
    import orbax.checkpoint as ocp

    if step is None:
      step = self.latest_step()
    if step is None or step not in self.steps():
      raise UserError(
        f"no checkpoint in {str(self._directory)!r}"
        f"{'' if step is None else f' of round {step}'}: "
        "run without --resume, or name another --workdir"
      )
    manager = self._open()
    with _quiet_orbax():
      about = manager.restore(
        step, args=ocp.args.Composite(about=ocp.args.JsonRestore())
      )["about"]
      self._refuse_other("configuration", self._config, about["config"])
      self._refuse_other("state", _structure(like), about["state"])
      state = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
      )["state"]
    return step, state

  def steps(self) -> list[int]:
    """The steps that are there, in order; [] if there is no folder."""
    if not self._directory.is_dir():
      return []
    return sorted(self._open().all_steps())

  def latest_step(self) -> int | None:
    """The last step saved, None if there is none."""
    return max(self.steps(), default=None)

  def best_step(self) -> int | None:
    """The step where the best metric is highest, None if there is none."""
    if self._best_metric is None or not self.steps():
      return None
    return self._open().best_step()

  def close(self) -> None:
    """Ends orbax's threads; the next call opens them again."""
    if self._manager is not None:
      with _quiet_orbax():
        self._manager.close()
      self._manager = None

  def _open(self):
    """The orbax manager (imported here: it costs seconds)."""
    if self._manager is not None:
      return self._manager
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    keep: list[policies.PreservationPolicy] = [policies.LatestN(1)]
    if self._best_metric is not None:
      keep.append(
        policies.BestN(
          get_metric_fn=self._quality,
          n=1,
          # Such a one was being deleted when the process was killed.
          keep_checkpoints_without_metrics=False,
        )
      )
    options = ocp.CheckpointManagerOptions(
      enable_async_checkpointing=False,
      best_fn=self._quality if self._best_metric is not None else None,
      preservation_policy=policies.AnyPreservationPolicy(keep),
    )
    with storage_errors(self._directory), _quiet_orbax():
      self._manager = ocp.CheckpointManager(
        self._directory, options=options, item_names=("state", "about")
      )
    return self._manager

  def _quality(self, metrics: Mapping[str, float]) -> float:
    """What "best" sorts by: NaN, of a run that diverged, is the worst."""
    (value,) = metrics.values()
    return -math.inf if math.isnan(value) else value

  def _refuse_other(self, what: str, given: dict, stored: dict) -> None:
    """Raises if the two dicts differ, naming the keys that do."""
    given, stored = _flatten(given), _flatten(stored)
    missing = "nothing"
    different = [
      f"{key}: {given.get(key, missing)} given, {stored.get(key, missing)} "
      "stored"
      for key in sorted({*given, *stored})
      if given.get(key, missing) != stored.get(key, missing)
    ]
    if different:
      more = len(different) - 6
      raise UserError(
        f"the checkpoint in {str(self._directory)!r} is of another {what} ("
        + "; ".join(different[:6])
        + (f"; and {more} more" if more > 0 else "")
        + "): give the stored values to resume, or --overwrite to start again, "
        "or another --workdir"
      )


def _structure(state: PyTree) -> dict[str, str]:
  """Path -> dtype and shape of each leaf, e.g. {".w": "float32[4,5]"}."""
  leaves, _ = jax.tree.flatten_with_path(state)
  kinds = {}
  for path, leaf in leaves:
    kind = jax.typeof(leaf)
    shape = ",".join(map(str, kind.shape))
    kinds[jax.tree_util.keystr(path) or "state"] = f"{kind.dtype}[{shape}]"
  return kinds


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  """Nested dicts as one, keys joined by dots; lists are values."""
  if not isinstance(tree, dict) or not tree:
    return {prefix: tree}
  flat = {}
  for key, value in tree.items():
    flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
  return flat


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
  """Silences absl's log: orbax prints a traceback a thread on a full disk.

  The same error reaches us as an exception, so nothing is lost.
  """
  logger = logging.getLogger("absl")
  before, logger.disabled = logger.disabled, True
  try:
    yield
  finally:
    logger.disabled = before
