"""Checkpoints: bitwise, latest and best, refused in words, whole or absent."""

import math
import os
import pathlib
import shutil
import subprocess
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.training.checkpoint import Checkpointer

CONFIG = {"lr": 0.1, "model": {"hidden": (64, 10)}, "rounds": 20}


class State(NamedTuple):
  server: Any
  clients: Any
  key: Any
  round: Any


def make_state(seed: int, num_seeds: int | None = None) -> State:
  def make(key):
    params = {"w": jax.random.normal(key, (4, 3)), "b": jnp.zeros(3)}
    params["b"] = params["b"].at[1].set(jnp.nan)  # bits, not values
    optimiser = optax.adam(1e-3).init(params)
    signs = jax.random.bits(key, (5, 2), jnp.uint32)
    return State((params, optimiser), (), key, jnp.int32(seed)), signs

  key = jax.random.key(seed)
  if num_seeds is not None:
    state, signs = jax.vmap(make)(jax.random.split(key, num_seeds))
  else:
    state, signs = make(key)
  return state._replace(clients=signs)


def bits(tree):
  """Every leaf as its type and bytes, typed keys as what they hold."""

  def raw(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()

  leaves, treedef = jax.tree.flatten(tree)
  return treedef, [(str(leaf.dtype), raw(leaf)) for leaf in leaves]


@pytest.mark.parametrize("num_seeds", [None, 3])
def test_a_state_comes_back_bit_for_bit(tmp_path, num_seeds):
  state = make_state(7, num_seeds)
  with Checkpointer(tmp_path / "c", CONFIG) as checkpoints:
    checkpoints.save(10, state)
  with Checkpointer(tmp_path / "c", CONFIG) as checkpoints:
    step, restored = checkpoints.restore(make_state(0, num_seeds))
  assert step == 10
  assert bits(restored) == bits(state)
  draw = jax.random.bits if num_seeds is None else jax.vmap(jax.random.bits)
  assert (draw(restored.key) == draw(state.key)).all()


def test_latest_and_best_are_kept(tmp_path):
  best = []
  with Checkpointer(tmp_path / "c", CONFIG, "acc") as checkpoints:
    for step, acc in enumerate([0.1, 0.9, math.nan, 0.3], 1):
      checkpoints.save(step, make_state(step), {"acc": acc, "loss": 1.0})
      best.append(checkpoints.best_step())
    assert checkpoints.steps() == [2, 4]
  assert best == [1, 2, 2, 2]
  with Checkpointer(tmp_path / "c", CONFIG, "acc") as checkpoints:
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 4)
    _, state = checkpoints.restore(make_state(0), checkpoints.best_step())
    assert state.round == 2
    checkpoints.save(5, make_state(5), {"acc": 0.95})
    assert checkpoints.steps() == [5]


def test_without_a_metric_only_the_latest_is_kept(tmp_path):
  with Checkpointer(tmp_path / "c", CONFIG) as checkpoints:
    assert checkpoints.latest_step() is None
    assert not (tmp_path / "c").exists()
    for step in (1, 2):
      checkpoints.save(step, make_state(step))
    assert checkpoints.steps() == [2]
    assert checkpoints.best_step() is None


def test_another_configuration_is_refused_by_its_keys(tmp_path):
  with Checkpointer(tmp_path / "c", CONFIG) as checkpoints:
    checkpoints.save(1, make_state(1))
  other = {"lr": 0.2, "model": {"hidden": [64, 10]}, "seeds": 5}
  with Checkpointer(tmp_path / "c", other) as checkpoints:
    with pytest.raises(UserError) as caught:
      checkpoints.restore(make_state(0))
  message = str(caught.value)
  assert "\n" not in message
  assert "lr: 0.2 given, 0.1 stored" in message
  assert "rounds: nothing given, 20 stored" in message
  assert "seeds: 5 given, nothing stored" in message
  assert "hidden" not in message  # a tuple is the list that JSON holds
  assert "--overwrite" in message and "--workdir" in message


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda s: s._replace(round=jnp.float32(0)), "float32.* int32"),
    (lambda s: s._replace(clients=s.clients[:3]), r"uint32\[3,2\]"),
    (lambda s: s._replace(clients=()), "nothing given"),
    (lambda s: s._replace(key=jax.random.key_data(s.key)), "key<fry>"),
  ],
)
def test_a_state_of_another_shape_is_refused(tmp_path, change, words):
  with Checkpointer(tmp_path / "c", CONFIG) as checkpoints:
    checkpoints.save(1, make_state(1))
    with pytest.raises(UserError, match=words):
      checkpoints.restore(change(make_state(1)))


def test_no_checkpoint_is_a_user_error(tmp_path):
  with Checkpointer(tmp_path / "c", CONFIG) as checkpoints:
    with pytest.raises(UserError, match="no checkpoint"):
      checkpoints.restore(make_state(0))


def test_a_half_written_step_is_ignored(tmp_path):
  folder = tmp_path / "c"
  with Checkpointer(folder, CONFIG) as checkpoints:
    checkpoints.save(1, make_state(1))
  # What orbax writes into before it renames (test_run kills it for real).
  partial = folder / "2.orbax-checkpoint-tmp"
  shutil.copytree(folder / "1", partial)
  (partial / "_CHECKPOINT_METADATA").unlink()
  with Checkpointer(folder, CONFIG) as checkpoints:
    assert checkpoints.restore(make_state(0))[0] == 1
    checkpoints.save(2, make_state(2))
    assert checkpoints.restore(make_state(0))[1].round == 2
  assert os.listdir(folder) == ["2"]


def test_a_half_deleted_step_does_no_harm(tmp_path):
  folder, full = tmp_path / "c", tmp_path / "full"
  with Checkpointer(folder, CONFIG, "acc") as checkpoints:
    checkpoints.save(1, make_state(1), {"acc": 0.1})
    shutil.copytree(folder / "1", full)
    checkpoints.save(2, make_state(2), {"acc": 0.2})
  walk = list(os.walk(full, topdown=False))
  doomed = [os.path.join(d, f) for d, _, names in walk for f in names]
  for count in range(0, len(doomed) + 1, 4):
    for path in doomed[:count]:
      pathlib.Path(path).unlink(missing_ok=True)
    shutil.rmtree(folder / "1", ignore_errors=True)
    shutil.copytree(full, folder / "1")
    with Checkpointer(folder, CONFIG, "acc") as checkpoints:
      assert checkpoints.best_step() == 2
      assert checkpoints.restore(make_state(0))[1].round == 2
  with Checkpointer(folder, CONFIG, "acc") as checkpoints:
    checkpoints.save(3, make_state(3), {"acc": 0.3})
    assert checkpoints.steps() == [3]


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 200 kB."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
  try:
    subprocess.run(mount, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f"may not mount a tmpfs: {error}")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint(small_disk, caplog):
  small = {"w": jnp.ones(10)}
  large = {"w": jax.random.normal(jax.random.key(0), (300, 300))}
  with Checkpointer(small_disk / "c", CONFIG) as checkpoints:
    checkpoints.save(1, small)
    with pytest.raises(UserError) as caught:
      checkpoints.save(2, large)
    assert "no space left" in str(caught.value)
    assert "--resume" in str(caught.value)
    assert os.listdir(small_disk / "c") == ["1"]
    assert checkpoints.restore(small)[0] == 1
    checkpoints.save(2, small)  # the same object goes on when there is space
    assert checkpoints.steps() == [2]
  assert not caplog.records  # orbax logs a traceback for each thread


def test_a_folder_that_is_a_file_is_a_user_error(tmp_path):
  (tmp_path / "c").write_text("not a folder")
  with Checkpointer(tmp_path / "c" / "d", CONFIG) as checkpoints:
    with pytest.raises(UserError, match="cannot write"):
      checkpoints.save(1, make_state(1))
