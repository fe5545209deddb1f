"""Views against plain loops, np.rot90 and scikit-learn; who sees what."""

import numpy as np
import pytest
from scipy import ndimage

from fedjax_het.core.errors import UserError
from fedjax_het.data import feature_skew, federated, sources
from fedjax_het.data.feature_skew import Range, measure

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(7, 6, 6, 3)).astype(np.float32)
EXTENT = measure(IMAGES)


def see(view, x=IMAGES, seed=0):
  return view.change(x, measure(x), np.random.default_rng(seed))


def dealt(num_clients=4, per_client=10, shape=(6, 6, 1), num_held=9):
  """Clients k hold rows k, k + N, k + 2 N, ...; the last 3 are nobody's."""
  n = num_clients * per_client
  x = RNG.normal(size=(n + 3, *shape)).astype(np.float32)
  y = np.arange(n + 3) % 3
  held = RNG.normal(size=(num_held, *shape)).astype(np.float32)
  data = sources.Dataset(x, y, held, np.arange(num_held) % 3, 3, "", "", "")
  parts = [np.arange(k, n, num_clients) for k in range(num_clients)]
  return federated.federate(data, parts), parts


def test_measure_is_the_range_of_each_channel():
  for c in range(3):
    channel = [v for image in IMAGES for row in image for v in row[:, c]]
    assert (EXTENT.low[c], EXTENT.high[c]) == (min(channel), max(channel))


@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 4])
def test_quarter_turns_are_rot90_of_each_image(turns):
  seen = see(feature_skew.rotation(90 * turns))
  for image, turned in zip(IMAGES, seen, strict=True):
    np.testing.assert_array_equal(turned, np.rot90(image, turns))


@pytest.mark.parametrize("degrees", [30.0, 120.0, -75.0])
def test_other_angles_are_bilinear_about_the_centre(degrees):
  # By hand: the colour at a place is that of the place it came from.
  seen = see(feature_skew.rotation(degrees))
  angle, size = np.deg2rad(degrees), 6
  for i in range(size):
    for j in range(size):
      # counter-clockwise on a screen, where the rows go down
      v, u = i - 2.5, j - 2.5
      row = 2.5 + v * np.cos(angle) + u * np.sin(angle)
      col = 2.5 - v * np.sin(angle) + u * np.cos(angle)
      if not (0 <= row <= size - 1 and 0 <= col <= size - 1):
        want = np.broadcast_to(EXTENT.low, (7, 3))
      else:
        r, c = min(int(row), size - 2), min(int(col), size - 2)
        a, b = row - r, col - c
        want = (
          (1 - a) * (1 - b) * IMAGES[:, r, c]
          + (1 - a) * b * IMAGES[:, r, c + 1]
          + a * (1 - b) * IMAGES[:, r + 1, c]
          + a * b * IMAGES[:, r + 1, c + 1]
        )
      np.testing.assert_allclose(seen[:, i, j], want, atol=1e-5)


def test_images_that_are_not_square_keep_their_shape():
  x = RNG.normal(size=(2, 4, 7, 1)).astype(np.float32)
  half, quarter = (see(feature_skew.rotation(a), x) for a in (180, 90))
  np.testing.assert_array_equal(half, x[:, ::-1, ::-1])
  assert quarter.shape == x.shape


def test_colours_channel_by_channel():
  view = feature_skew.colour(
    [1, 2, 0.5], [0, -1, 3], order=[2, 0, 1], invert=True
  )
  seen = see(view)
  for new, old in enumerate([2, 0, 1]):
    negative = EXTENT.low[old] + EXTENT.high[old] - IMAGES[..., old]
    want = negative * [1, 2, 0.5][new] + [0, -1, 3][new]
    np.testing.assert_allclose(seen[..., new], want, rtol=1e-5, atol=1e-5)
  assert view.name == "colour:gain=1/2/0.5,offset=0/-1/3,order=2/0/1,invert=1"


def test_a_negative_of_a_negative_is_the_image():
  view = feature_skew.style("negative")
  np.testing.assert_allclose(
    see(feature_skew.chain(view, view)), IMAGES, atol=1e-6
  )


def test_noise_has_its_standard_deviation_and_seed():
  x = np.zeros((200, 10, 10, 1), np.float32)
  view = feature_skew.noise(0.3)
  first, again, other = (see(view, x, seed) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any() and first.dtype == np.float32
  # 20,000 draws: the standard error of the mean is 0.0021, of the std 0.0015
  assert abs(first.mean()) < 0.01 and abs(first.std() - 0.3) < 0.008


def test_blur_is_a_filter_of_each_plane():
  seen = see(feature_skew.blur(0.8))
  for image, blurred in zip(IMAGES, seen, strict=True):
    for c in range(3):
      want = ndimage.gaussian_filter(image[..., c], 0.8, mode="nearest")
      np.testing.assert_allclose(blurred[..., c], want, atol=1e-6)


def test_contrast_and_gamma_by_hand():
  low, high = EXTENT
  for image, seen in zip(IMAGES, see(feature_skew.contrast(3.0)), strict=True):
    for c in range(3):
      mean = image[..., c].mean()
      want = np.clip(mean + 3 * (image[..., c] - mean), low[c], high[c])
      np.testing.assert_allclose(seen[..., c], want, atol=1e-5)
  unit = (IMAGES.astype(float) - low) / (high - low)
  seen = see(feature_skew.gamma(2.0))
  np.testing.assert_allclose((seen - low) / (high - low), unit**2, atol=1e-5)
  assert (see(feature_skew.style("dark")) <= IMAGES + 1e-5).all()
  assert (see(feature_skew.style("bright")) >= IMAGES - 1e-5).all()


def test_each_client_sees_its_own_rows_in_its_own_view():
  data, parts = dealt()
  views = feature_skew.by_group(
    4, [feature_skew.rotation(90 * k) for k in range(4)]
  )
  skewed = feature_skew.apply(data, views)
  old, new = np.asarray(data.examples.x), np.asarray(skewed.examples.x)
  for k, part in enumerate(parts):
    for row in part:
      np.testing.assert_array_equal(new[row], np.rot90(old[row], k))
  np.testing.assert_array_equal(new[40:], old[40:])  # nobody's
  for name in ("train", "test", "heldout"):
    for a, b in zip(getattr(data, name), getattr(skewed, name), strict=True):
      np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(skewed.examples.y, data.examples.y)
  np.testing.assert_array_equal(skewed.budget, data.budget)
  assert (np.asarray(data.examples.x) == old).all()


def turns_of(seen, plain):
  """How often each image was turned (random pixels leave no doubt)."""
  return [
    next(k for k in range(4) if (np.rot90(image, k) == turned).all())
    for turned, image in zip(seen, plain, strict=True)
  ]


def test_held_out_examples_in_equal_shares_or_in_every_view():
  data, _ = dealt()
  views = feature_skew.parse("rotation:0/90/180/90", 4)  # three different
  plain = np.asarray(data.heldout.x)
  share = feature_skew.apply(data, views, heldout="share").heldout
  assert sorted(turns_of(share.x, plain)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
  np.testing.assert_array_equal(share.y, data.heldout.y)
  other = feature_skew.apply(data, views, heldout="share", seed=1).heldout
  assert turns_of(other.x, plain) != turns_of(share.x, plain)
  every = feature_skew.apply(data, views, heldout="every").heldout
  assert turns_of(every.x, np.tile(plain, (3, 1, 1, 1))) == (
    [0] * 9 + [1] * 9 + [2] * 9
  )
  np.testing.assert_array_equal(every.y, np.tile(data.heldout.y, 3))


def test_views_are_dealt_in_equal_groups():
  names = [v.name for v in feature_skew.parse("noise:0/0.5/1", 9)]
  assert names == ["noise:0", "noise:0.5", "noise:1"] * 3
  drawn = [v.name for v in feature_skew.parse("noise:0/0.5/1", 9, seed=1)]
  assert sorted(drawn) == sorted(names) and drawn != names
  assert [v.name for v in feature_skew.parse("plain", 2)] == ["plain"] * 2
  styles = feature_skew.parse("style:plain/dark", 2)
  assert styles == [feature_skew.STYLES["plain"], feature_skew.STYLES["dark"]]


def test_vectors_take_gain_and_noise():
  data, parts = dealt(shape=(5,))
  views = feature_skew.parse("gain:1/2", 4)
  skewed = feature_skew.apply(data, views)
  want = np.asarray(data.examples.x).copy()
  for k in (1, 3):
    want[parts[k]] *= 2
  np.testing.assert_array_equal(skewed.examples.x, want)
  feature_skew.apply(data, feature_skew.parse("noise:1", 4))
  for spec in ("rotation:90", "blur:1", "gamma:2", "style:negative"):
    with pytest.raises(UserError, match="needs (images|channels)"):
      feature_skew.apply(data, feature_skew.parse(spec, 4))


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda d: feature_skew.parse("rotate:90", 4), "did you mean 'rotation'"),
    (lambda d: feature_skew.parse("style:drak", 4), "did you mean 'dark'"),
    (lambda d: feature_skew.parse("rotation:a", 4), "'a' is not a number"),
    (lambda d: feature_skew.parse("rotation", 4), "'' is not a number"),
    (lambda d: feature_skew.parse("noise:-1", 4), ">= 0, got -1"),
    (lambda d: feature_skew.parse("noise:0/1/2", 2), "2 clients .* 3 groups"),
    (
      lambda d: feature_skew.apply(d, [feature_skew.PLAIN]),
      "1 views for 4 clients",
    ),
    (
      lambda d: feature_skew.apply(d, [feature_skew.PLAIN] * 4, heldout="al"),
      "unknown way to treat held-out data",
    ),
    (
      lambda d: feature_skew.apply(
        d, [feature_skew.View("cut", lambda x, e, r: x[:, :3])] * 4
      ),
      r"view cut turned \[40, 6, 6, 1\] into \[40, 3, 6, 1\]",
    ),
    (
      lambda d: feature_skew.apply(
        d, [feature_skew.View("bad", lambda x, e, r: x / 0 * 0)] * 4
      ),
      "view bad gave NaN",
    ),
    (
      lambda d: feature_skew.apply(d, [feature_skew.colour([1, 2])] * 4),
      "gain must be one number or 1",
    ),
    (
      lambda d: feature_skew.apply(d, [feature_skew.colour(order=[1])] * 4),
      "permutation of 0 to 0",
    ),
  ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_errors_say_what_to_do(call, message):
  with pytest.raises(UserError, match=message):
    call(dealt()[0])


def test_clients_that_share_rows_are_refused():
  x = np.zeros((6, 4, 4, 1), np.float32)
  data = sources.Dataset(
    x, np.arange(6) % 2, x, np.arange(6) % 2, 2, "", "", ""
  )
  shared = federated.federate(data, [[0, 1, 2], [2, 3, 4]])
  with pytest.raises(UserError, match="clients 0 and 1 both hold row 2"):
    feature_skew.apply(shared, [feature_skew.PLAIN] * 2)


def test_tokens_are_refused_unless_the_view_is_plain():
  data = federated.from_arrays(
    np.arange(60).reshape(20, 3), np.arange(20) % 2, [0] * 10 + [1] * 10,
    tokens=True,
  )  # fmt: skip
  same = feature_skew.apply(data, [feature_skew.PLAIN] * 2)
  np.testing.assert_array_equal(same.examples.x, data.examples.x)
  with pytest.raises(UserError, match="not tokens"):
    feature_skew.apply(data, feature_skew.parse("noise:1", 2))


def test_a_nearest_neighbour_gets_lost_only_across_rotations():
  """Skew of the inputs must hurt a model that was fitted on one view."""
  from sklearn.neighbors import KNeighborsClassifier

  digits = sources.load("digits")
  data = federated.federate(
    digits, [np.arange(0, 1437, 2), np.arange(1, 1437, 2)]
  )
  data = feature_skew.apply(data, feature_skew.parse("rotation:0/90", 2))
  x, y = (
    np.asarray(data.examples.x).reshape(1437, -1),
    np.asarray(data.examples.y),
  )
  train, test = (
    [np.asarray(r.index)[k, : int(r.count[k])] for k in range(2)]
    for r in (data.train, data.test)
  )
  model = KNeighborsClassifier(3).fit(x[train[0]], y[train[0]])
  assert model.score(x[test[0]], y[test[0]]) > 0.93
  assert model.score(x[test[1]], y[test[1]]) < 0.5


def test_the_contact_sheet_has_a_row_for_each_view(tmp_path):
  views = [feature_skew.rotation(45), feature_skew.style("negative")]
  figure = feature_skew.plot(
    IMAGES, views, tmp_path / "sheet.png", num_examples=3
  )
  assert len(figure.axes) == 6 and (tmp_path / "sheet.png").stat().st_size
  labels = [ax.get_ylabel() for ax in figure.axes]
  assert labels == ["rotation:45", "", "", "colour:invert=1", "", ""]
  assert isinstance(measure(IMAGES), Range)
