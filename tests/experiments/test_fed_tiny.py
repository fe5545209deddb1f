"""Verdicts of `fed_tiny`, masks by seed, and the binary on the digits."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_het.algorithms import fed_tiny, masked_fed_avg
from fedjax_het.core import rounds
from fedjax_het.core.errors import UserError
from fedjax_het.data import sources
from fedjax_het.masks import tree
from fedjax_het.models.batch_norm import mlp_with_batch_norm
from fedjax_het.training.arms import Arm
from fedjax_het_experiments import _tiny_masks as masks
from fedjax_het_experiments import _tiny_report as report
from fedjax_het_experiments import fed_tiny as binary

LEVELS = {
  report.DENSE: 0.79,
  report.UNIFORM: 0.66,
  report.ERK: 0.77,
  report.SNIP: 0.70,
  report.SYNFLOW: 0.74,
  report.SELECTED: 0.77,
  report.PROGRESSIVE: 0.71,
  report.FEDTINY: 0.77,
  report.PRUNEFL: 0.72,
  report.FEDDST: 0.73,
}


def _arms(**changes):
  """Five seeds whose levels differ by far more than the arms do."""
  rng = np.random.default_rng(0)
  of_seed = rng.normal(scale=0.05, size=5)
  arms = {}
  for name, level in (LEVELS | changes).items():
    noise = rng.normal(scale=1e-3, size=(5, 4))
    curve = level + of_seed[:, None] + noise
    curve[:, 0] = 0.1  # the first evaluation is not among the last three
    bytes_sent = np.arange(1, 5)[None] * np.ones((5, 1)) * 1e6
    arms[name] = Arm(name, np.arange(1, 5), curve, bytes_sent, bytes_sent)
  return arms


def test_verdicts():
  def outcomes(**changes):
    return [row.outcome for row in binary.verdicts(_arms(**changes))]

  # as in the pilot: selection does it all, and ERK matches
  assert outcomes() == ["PASS", "PASS", "PASS", "PASS", "NULL", "NULL"]
  better = outcomes(**{report.FEDTINY: 0.80})
  assert better[4:] == ["PASS", "PASS"]
  worse = outcomes(**{report.FEDTINY: 0.68})
  assert worse == ["FAIL", "PASS", "FAIL", "PASS", "FAIL", "FAIL"]
  rows = binary.verdicts(_arms(**{report.FEDDST: 0.76}))
  assert "FedDST" in rows[0].claim
  np.testing.assert_allclose(rows[0].interval.mean, 1.0, atol=0.3)


def _problem():
  dataset, public = masks.set_aside(sources.load("digits", None), 100)
  shape = dataset.train_x.shape[1:]
  model = mlp_with_batch_norm(shape, dataset.num_classes, (16, 8))
  start = masks.pretrained(
    model.training, public, rate=0.1, batch_size=20, epochs=10
  )
  return dataset, public, model, start


def test_public_images_are_held_by_nobody_and_teach():
  dataset, public, model, start = _problem()
  whole = sources.load("digits", None)
  assert len(dataset.train_y) + len(public.y) == len(whole.train_y)
  rest = {image.tobytes() for image in dataset.train_x}
  seen = [image.tobytes() in rest for image in np.asarray(public.x)]
  assert np.mean(seen) < 0.05  # the digits hold a few twins
  x, y = jnp.asarray(dataset.test_x), dataset.test_y
  hits = [
    np.mean(np.argmax(model.evaluation.apply(p, x), -1) == y)
    for p in (m.init(jax.random.key(0)) for m in (model.training, start))
  ]
  assert hits[1] > hits[0] + 0.25
  with pytest.raises(UserError, match="leave some"):
    masks.set_aside(dataset, len(dataset.train_y))


@pytest.mark.parametrize("factory", [fed_tiny, masked_fed_avg])
def test_a_run_finds_the_mask_of_its_seed(factory):
  """Under lax.map over seeds, as `compare` starts its runs."""
  _, _, _, start = _problem()
  rows = {7: [200, 40, 10], 1000: [120, 100, 30], 3: [230, 10, 10]}
  choices = {
    seed: masks.Choice(np.array(counts), np.zeros(2), 0, 0)
    for seed, counts in rows.items()
  }
  pruning = masks.by_seed(choices, 250 / (64 * 16 + 16 * 8 + 80))
  more = {"num_clients": 4} if factory is fed_tiny else {}
  algorithm = factory(
    start, pruning, optimizer=optax.sgd(0.1), batch_size=8, **more
  )

  def kept(seed):
    state = rounds.init_state(algorithm, jax.random.key(seed), 4)
    return jnp.stack(
      [jnp.sum(p != 0) for p in tree.layers(state.server.params).values()]
    )

  found = jax.jit(lambda seeds: jax.lax.map(kept, seeds))(
    jnp.asarray(list(rows), jnp.uint32)
  )
  np.testing.assert_array_equal(found, list(rows.values()))


def test_bytes_before_the_rounds_are_charged():
  shape = {"a": jnp.ones((8, 4))}
  mask = {"a": jnp.ones((8, 4), bool)}
  chosen = [
    masks.Choice(np.array([32]), np.zeros(2), up, 500) for up in (70, 90)
  ]
  arms = _arms()
  pairs = {report.UNIFORM: [(shape, mask)], report.SELECTED: [(shape, mask)]}
  after = report.charge(list(arms.values()), pairs, chosen, 10)
  extra = {
    arm.name: (
      arm.up_bytes[0, 0] - arms[arm.name].up_bytes[0, 0],
      arm.down_bytes[0, -1] - arms[arm.name].down_bytes[0, -1],
    )
    for arm in after
  }
  # 32 positions are a bitmap of 4 bytes after 4 bytes of head, to 10 clients
  assert extra[report.UNIFORM] == extra[report.PROGRESSIVE] == (0, 80)
  assert extra[report.FEDTINY] == extra[report.SELECTED] == (80, 580)
  assert extra[report.DENSE] == (0, 0)


@pytest.mark.slow
def test_the_binary(source_env, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "fedjax_het_experiments",
      "fed_tiny",
      "--num_clients=12",
      "--cohort_size=3",
      "--rounds=6",
      "--eval_every=2",
      "--seeds=2",
      "--fed_tiny_every=1",
      "--fed_tiny_public=100",
      "--fed_tiny_density=0.1",
      "--fed_tiny_hidden=32",
      "--fed_tiny_hidden=16",
      "--tune_seeds=0",
      f"--workdir={tmp_path}",
    ],
    env=source_env,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  text = (tmp_path / "summary.md").read_text()
  assert text.count("| BN selection alone |") == 3  # arms, figure, densities
  assert "better than the best rival" in text
