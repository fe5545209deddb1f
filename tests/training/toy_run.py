"""A small run to be killed: `python toy_run.py WORKDIR [--resume]`.

DIE=file,text,round  SIGKILLs the process just before the named step:
  metrics  before the block's metrics are written;
  torn     when a half of its last line is written;
  save     after its metrics, before its checkpoint;
  rename   when the checkpoint is written and not yet named;
  delete   in the middle of deleting the checkpoint before it.
SLEEP=seconds  makes each round take that long, in the middle of the scan, and
leaves a file WORKDIR.asleep when it does.
Prints the bytes of the final state.
"""

import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.training import checkpoint, metrics, run

ROUNDS, BLOCKS, SEEDS = 3, 6, 2
CONFIG = {"rounds": ROUNDS * BLOCKS, "lr": 0.1}


class State(NamedTuple):
  w: Any
  momentum: Any
  key: Any
  round: Any


def make_state():
  def one(key):
    return State(
      jax.random.normal(key, 5), {"m": jnp.zeros(5)}, key, jnp.int32(0)
    )

  return jax.vmap(one)(jax.random.split(jax.random.key(3), SEEDS))


def sleep(seconds):
  pathlib.Path(sys.argv[1] + ".asleep").touch()
  time.sleep(seconds)
  return np.float32(0)


def block(state, data):
  """Noisy gradient steps, in which the bits of every round tell."""

  def one_round(state, _):
    key = jax.random.fold_in(state.key, state.round)
    late = 0.0
    if seconds := float(os.environ.get("SLEEP", 0)):
      late = jax.pure_callback(
        lambda _: sleep(seconds),
        jax.ShapeDtypeStruct((), jnp.float32),
        state.w,
        vmap_method="sequential",
      )
    gradient = state.w - data + jax.random.normal(key, 5)
    m = 0.9 * state.momentum["m"] + gradient
    new = State(state.w - 0.1 * m + late, {"m": m}, state.key, state.round + 1)
    bad = jnp.where(new.round == 8, 1, 0)
    return new, {"loss": jnp.sum(gradient**2), "dropped": bad}

  state, rounds = jax.lax.scan(one_round, state, length=ROUNDS)
  return state, {
    "rounds": rounds,
    "eval": {"accuracy": -jnp.sum(state.w**2), "client_accuracy": state.w},
  }


def train(workdir, **options):
  return run.train(
    jax.vmap(block, in_axes=(0, None)),
    make_state(),
    jnp.arange(5.0),
    workdir=workdir,
    **{
      "rounds_per_block": ROUNDS,
      "num_blocks": BLOCKS,
      "config": CONFIG,
      "num_seeds": SEEDS,
      "best_metric": "eval/accuracy",
      "summarise": dict,
      "progress": "quiet",
      **options,
    },
  )


def state_bytes(state):
  state = state._replace(key=jax.random.key_data(state.key))
  return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state))


def die():
  os.kill(os.getpid(), signal.SIGKILL)


def plan_death(where, last_round):
  """Arranges a SIGKILL in the block that ends with `last_round`."""

  def write(self, records, original=metrics.MetricsWriter.write):
    records = list(records)
    if records[-1]["round"] == last_round:
      if where == "metrics":
        die()
      if where == "torn":
        original(self, records)
        os.truncate(self._path, self._path.stat().st_size - 20)
        die()
    original(self, records)

  def save(self, step, *args, original=checkpoint.Checkpointer.save):
    if step == last_round and where == "save":
      die()
    original(self, step, *args)

  def rename(old, new, *args, original=os.rename, **kwargs):
    if pathlib.Path(new).name == str(last_round) and where == "rename":
      die()
    return original(old, new, *args, **kwargs)

  def rmtree(path, *args, original=shutil.rmtree, **kwargs):
    if pathlib.Path(path).name.isdigit() and where == "delete":
      (pathlib.Path(path) / "_CHECKPOINT_METADATA").unlink()
      original(pathlib.Path(path) / "metrics")
      die()
    return original(path, *args, **kwargs)

  metrics.MetricsWriter.write = write
  checkpoint.Checkpointer.save = save
  os.rename = rename
  shutil.rmtree = rmtree


if __name__ == "__main__":
  if "DIE" in os.environ:
    where, last_round = os.environ["DIE"].split(",")
    plan_death(where, int(last_round))
  result = train(sys.argv[1], resume="--resume" in sys.argv)
  print(state_bytes(result.state).hex())
