"""Clusters in place of labels, and the tasks that make them differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
import tiny

from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.data import diversity, embedding, sources, tasks
from fedjax_het.data._dirichlet import inner_dirichlet


@pytest.fixture
def blobs():
  """Five well separated groups of 60, 50, ..., 20."""
  rng = np.random.default_rng(0)
  group = np.repeat(np.arange(5), [60, 50, 40, 30, 20])
  centre = 20 * rng.normal(size=(5, 8))
  features = centre[group] + rng.normal(size=(200, 8))
  return features.astype(np.float32), group


@pytest.mark.parametrize("batch_size", [1, 7, 13, 50])
def test_embed_is_the_function_on_all_at_once(batch_size):
  weight = np.random.default_rng(0).normal(size=(3, 2, 4, 6))
  weight = weight.astype(np.float32)
  x = np.random.default_rng(1).normal(size=(13, 3, 2)).astype(np.float32)

  def features(params, x):
    return jnp.einsum("bij,ijkl->bkl", x, params)

  got = embedding.embed(features, jnp.asarray(weight), x, batch_size)
  assert got.dtype == np.float32 and isinstance(got, np.ndarray)
  want = np.einsum("bij,ijkl->bkl", x, weight).reshape(13, 24)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_clusters_find_separated_groups_and_repeat(blobs):
  features, group = blobs
  found = embedding.clusters(features, 5, seed=3)
  assert sklearn.metrics.adjusted_rand_score(group, found) == 1
  again = embedding.clusters(features, 5, seed=3)
  np.testing.assert_array_equal(found, again)
  assert set(embedding.clusters(features, 12)) == set(range(12))


def test_clusters_of_what_cannot_be_clustered(blobs):
  features, _ = blobs
  with pytest.raises(UserError, match="3 different points.*num_clusters=4"):
    embedding.clusters(np.repeat(features[:3], 5, axis=0), 4)
  with pytest.raises(UserError, match="diverge"):
    embedding.clusters(np.where(features > 0, np.nan, features), 4)
  with pytest.raises(UserError, match="between 1 and the 200"):
    embedding.clusters(features, 201)


def test_embedding_dirichlet_is_inner_dirichlet_on_the_clusters(blobs):
  features, _ = blobs
  groups = embedding.clusters(features, 5, seed=4)
  want = inner_dirichlet(groups, [20] * 10, alpha=0.1, seed=4)
  for given in (groups, features):
    got = embedding.embedding_dirichlet(
      given, 10, alpha=0.1, num_clusters=5, seed=4
    )
    for one, other in zip(got, want, strict=True):
      np.testing.assert_array_equal(one, other)
  assert sorted(np.concatenate(got)) == list(range(200))


def test_every_partition_deals_the_same_and_skew_grows(blobs):
  features, group = blobs
  beta = []
  for alpha in (100.0, 1.0, 0.01):
    parts = embedding.embedding_dirichlet(group, 8, alpha=alpha, size=25)
    assert {len(part) for part in parts} == {25}
    assert sorted(np.concatenate(parts)) == list(range(200))
    counts = diversity.group_counts(parts, group)
    beta.append(diversity.decompose(counts).beta)
  assert beta[0] < beta[1] < beta[2]


def test_tiny_alpha_ends(blobs):
  parts = embedding.embedding_dirichlet(blobs[1], 40, alpha=1e-9, size=5)
  assert {len(part) for part in parts} == {5}


def test_overlap_against_scikit_learn():
  rng = np.random.default_rng(0)
  first = rng.integers(0, 4, 300)
  second = np.where(rng.random(300) < 0.5, first, rng.integers(0, 6, 300))
  nmi, confusion = embedding.overlap(first, second)
  np.testing.assert_array_equal(
    confusion, sklearn.metrics.cluster.contingency_matrix(first, second)
  )
  p = confusion / 300
  rows, columns = p.sum(axis=1), p.sum(axis=0)
  information = sum(
    p[i, j] * np.log(p[i, j] / (rows[i] * columns[j]))
    for i in range(4)
    for j in range(6)
    if p[i, j]
  )
  entropy = -(rows @ np.log(rows) + columns @ np.log(columns)) / 2
  assert nmi == pytest.approx(information / entropy)
  assert embedding.overlap(first, 3 - first).nmi == pytest.approx(1)
  with pytest.raises(ValueError, match="not pairs"):
    embedding.overlap(first, second[:-1])


@pytest.fixture(scope="module")
def digits():
  whole = sources.load("digits")
  return whole._replace(
    train_x=whole.train_x[:40],
    train_y=whole.train_y[:40],
    test_x=whole.test_x[:10],
    test_y=whole.test_y[:10],
  )


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_keeps_the_examples_in_their_order(digits, name):
  task = tasks.TASKS[name]
  made = task.make(digits, np.random.default_rng(0))
  again = task.make(digits, np.random.default_rng(0))
  for one, other in zip(made[:4], again[:4], strict=True):
    np.testing.assert_array_equal(one, other)
  assert len(made.train_x) == len(made.train_y) == 40
  assert len(made.test_x) == len(made.test_y) == 10
  assert made.train_x.dtype == np.float32
  assert made.train_y.dtype in (np.float32, np.int32)
  flipped = digits._replace(train_x=digits.train_x[::-1])
  if name in ("classification", "inpainting"):  # no randomness
    other = task.make(flipped, np.random.default_rng(0))
    np.testing.assert_array_equal(other.train_x, made.train_x[::-1])


def test_inpainting_cuts_the_image_in_two(digits):
  made = tasks.TASKS["inpainting"].make(digits, np.random.default_rng(0))
  right = made.train_y.reshape(40, 8, 4, 1)
  whole = np.concatenate([made.train_x, right], axis=2)
  np.testing.assert_array_equal(whole, digits.train_x)
  assert made.num_classes == 32


def test_denoising_adds_unit_noise(digits):
  made = tasks.TASKS["denoising"].make(digits, np.random.default_rng(0))
  clean = made.train_y.reshape(digits.train_x.shape)
  np.testing.assert_array_equal(clean, digits.train_x)
  noise = made.train_x - clean
  assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_rotation_turns_back(digits):
  made = tasks.TASKS["rotation"].make(digits, np.random.default_rng(0))
  np.testing.assert_allclose(np.linalg.norm(made.train_y, axis=1), 1, rtol=1e-6)
  angle = np.arctan2(made.train_y[:, 1], made.train_y[:, 0])
  assert angle.min() < -2 and angle.max() > 2
  back = tasks.rotate(made.train_x, -angle)
  inside = np.s_[:, 2:6, 2:6]  # twice interpolated, so only about the same

  def alike(images):
    pair = images[inside].ravel(), digits.train_x[inside].ravel()
    return np.corrcoef(pair)[0, 1]

  assert alike(back) > 0.85 > 0.5 > alike(made.train_x)


def test_quarter_turns_are_exact():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(4, 6, 6, 2)).astype(np.float32)
  got = tasks.rotate(images, np.arange(4) * np.pi / 2)
  for k in range(4):
    np.testing.assert_allclose(got[k], np.rot90(images[k], k), atol=1e-5)


def test_what_comes_in_from_outside_is_the_background():
  image = np.ones((1, 9, 9, 1), np.float32)
  image[0, 4, 4, 0] = -3
  turned = tasks.rotate(image, np.array([np.pi / 4]))[0, :, :, 0]
  np.testing.assert_allclose(turned[[0, 0, 8, 8], [0, 8, 0, 8]], -3)
  assert turned[4, 4] == pytest.approx(-3)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_features_are_the_inner_layer_of_the_same_network(digits, name):
  task = tasks.TASKS[name]
  made = task.make(digits, np.random.default_rng(0))
  model, features = task.network(made.train_x.shape[1:], made.num_classes)
  params = model.init(jax.random.key(0))
  z = np.asarray(made.train_x, np.float64).reshape(40, -1)
  layers = len(params)
  for i in range(layers):
    layer = jax.tree.map(np.asarray, params[f"Dense_{i}"])
    z = z @ layer["kernel"] + layer["bias"]
    if i < layers - 1:
      z = np.maximum(z, 0)
    if i == 1:
      inner = z
  got = embedding.embed(features, params, made.train_x)
  np.testing.assert_allclose(got, inner, rtol=1e-4, atol=1e-4)
  out = model.apply(params, jnp.asarray(made.train_x))
  np.testing.assert_allclose(out, z, rtol=1e-4, atol=1e-4)
  loss, score = task.measure(out, jnp.asarray(made.train_y))
  assert loss.shape == score.shape == (40,) and loss.dtype == jnp.float32


def test_measures_by_hand():
  rng = np.random.default_rng(0)
  out, target = rng.normal(size=(2, 5, 3)).astype(np.float32)
  loss, score = tasks.squared_error(jnp.asarray(out), jnp.asarray(target))
  want = [np.mean((a - b) ** 2) for a, b in zip(out, target, strict=True)]
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(score, 1 - np.array(want), rtol=1e-4, atol=1e-6)

  angle, error = rng.uniform(-3, 3, 5), np.array([0, 0.3, -1.2, 3.1, 2])
  unit = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  turned = np.stack([np.cos(angle + error), np.sin(angle + error)], axis=1)
  loss, score = tasks.direction_error(
    jnp.asarray(7 * turned, jnp.float32), jnp.asarray(unit, jnp.float32)
  )
  np.testing.assert_allclose(score, np.cos(error), atol=1e-5)
  np.testing.assert_allclose(
    loss, ((7 * turned - unit) ** 2).mean(axis=1), rtol=1e-5
  )


def test_mean_loss_of_classification_is_cross_entropy():
  model, data = tiny.mlp(), tiny.data()
  params = model.init(jax.random.key(1))
  batch = local.Batch(
    data.heldout.x[:6],
    data.heldout.y[:6],
    jnp.asarray([1, 1, 0, 1, 0, 0], jnp.float32),
  )
  mean = tasks.mean_loss(model, tasks.TASKS["classification"].measure)
  want = local.cross_entropy(model)
  args = params, batch, jax.random.key(0)
  np.testing.assert_allclose(mean(*args), want(*args), rtol=1e-6)
  got = jax.grad(mean)(*args)
  for a, b in zip(
    jax.tree.leaves(got), jax.tree.leaves(jax.grad(want)(*args)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_direction_of_length_0_has_a_gradient():
  def loss(out):
    return jnp.sum(tasks.direction_error(out, jnp.ones((1, 2)))[0])

  assert np.isfinite(jax.grad(loss)(jnp.zeros((1, 2)))).all()
