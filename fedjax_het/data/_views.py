"""Views: what a camera, a room or a wrist does to the inputs, never to labels.

A view changes a batch of inputs on the host.  The inputs are normalised
already, so that 0 is the mean of the training set and not black: the views
that need to know what black and white are take the range of the data set.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from fedjax_het.core.errors import UserError, unknown


class Range(NamedTuple):
  """The smallest and largest value of each channel: low, high f32[C]."""

  low: np.ndarray
  high: np.ndarray


class View(NamedTuple):
  """A change of the inputs.

  name: tells views apart; two views of one name must be the same.
  change: (x f32[m, ...], Range, NumPy generator) -> f32[m, ...], the same
    shape; x must not be written to.
  """

  name: str
  change: Callable[[np.ndarray, Range, np.random.Generator], np.ndarray]


def measure(x: np.ndarray) -> Range:
  """The range of each channel (last axis) of x [n, ..., C]."""
  flat = x.reshape(-1, x.shape[-1])
  return Range(flat.min(axis=0), flat.max(axis=0))


PLAIN = View("plain", lambda x, extent, rng: x)


def rotation(degrees: float) -> View:
  """Turns images counter-clockwise about their centre, as `np.rot90` does.

  Multiples of 90 degrees are exact (of 180 if the image is not square), others
  are interpolated linearly; what comes in from outside has the lowest value of
  its channel (black).
  """
  name = f"rotation:{degrees:g}"

  def change(x, extent, rng):
    del rng
    _images(name, x)
    turns, rest = divmod(degrees, 90)
    if not rest and (turns % 2 == 0 or x.shape[1] == x.shape[2]):
      return np.rot90(x, int(turns), axes=(1, 2))
    turned = ndimage.rotate(
      x - extent.low, degrees, axes=(1, 2), reshape=False, order=1
    )
    return turned + extent.low

  return View(name, change)


def colour(
  gain: float | Sequence[float] = 1.0,
  offset: float | Sequence[float] = 0.0,
  *,
  order: Sequence[int] | None = None,
  invert: bool = False,
) -> View:
  """Another camera: inverts, reorders, scales and shifts channels, in turn.

  Args:
    gain: times the (normalised) value; one, or one for each channel.  In
      vectors [n, d] each feature is a channel.
    offset: plus this, in standard deviations of the training set.
    order: new channel c is the old channel order[c].
    invert: low + high - x, a negative.
  """
  parts = [
    f"{key}={_text(value)}"
    for key, value, rest in (
      ("gain", gain, 1.0),
      ("offset", offset, 0.0),
      ("order", order, None),
      ("invert", invert, False),
    )
    if np.ndim(value) or value != rest
  ]
  name = "colour:" + ",".join(parts)

  def change(x, extent, rng):
    del rng
    channels = x.shape[-1]
    if (order is not None or invert) and x.ndim < 3:
      raise UserError(
        f"view {name} needs channels [n, ..., c], got vectors {list(x.shape)}: "
        "use gain, offset or noise"
      )
    for key, value in (("gain", gain), ("offset", offset)):
      if np.shape(value) not in ((), (channels,)):
        raise UserError(
          f"view {name}: {key} must be one number or {channels}, one a channel"
        )
    if order is not None and sorted(order) != list(range(channels)):
      raise UserError(
        f"view {name}: order must be a permutation of 0 to {channels - 1}"
      )
    if invert:
      x = extent.low + extent.high - x
    if order is not None:
      x = x[..., list(order)]
    return x * np.float32(gain) + np.float32(offset)

  return View(name, change)


def noise(std: float) -> View:
  """Adds Gaussian noise: x + N(0, std^2), std in those of the training set."""
  if not std >= 0:
    raise UserError(f"noise must have a standard deviation >= 0, got {std}")

  def change(x, extent, rng):
    del extent
    return x + np.float32(std) * rng.standard_normal(x.shape, np.float32)

  return View(f"noise:{std:g}", change)


def blur(sigma: float) -> View:
  """Gaussian blur of images by `sigma` pixels; the edge goes on outside."""
  name = f"blur:{sigma:g}"
  if not sigma >= 0:
    raise UserError(f"blur must be a number of pixels >= 0, got {sigma}")

  def change(x, extent, rng):
    del extent, rng
    _images(name, x)
    return ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")

  return View(name, change)


def contrast(factor: float) -> View:
  """Stretches an image about the mean of each channel, cut to the range."""
  name = f"contrast:{factor:g}"

  def change(x, extent, rng):
    del rng
    _images(name, x)
    mean = x.mean(axis=(1, 2), keepdims=True)
    return np.clip(mean + np.float32(factor) * (x - mean), *extent)

  return View(name, change)


def gamma(exponent: float) -> View:
  """u -> u^exponent with u from 0 (low) to 1 (high): above 1 is darker."""
  name = f"gamma:{exponent:g}"
  if not exponent > 0:
    raise UserError(f"gamma must be above 0, got {exponent}")

  def change(x, extent, rng):
    del rng
    _images(name, x)
    width = np.where(extent.high > extent.low, extent.high - extent.low, 1)
    unit = np.clip((x - extent.low) / width, 0, 1)
    return extent.low + width * unit ** np.float32(exponent)

  return View(name, change)


def chain(*views: View) -> View:
  """One view after the other, the first first."""

  def change(x, extent, rng):
    for view in views:
      x = view.change(x, extent, rng)
    return x

  return View("+".join(view.name for view in views) or "plain", change)


def _images(name, x):
  if x.ndim != 4:
    raise UserError(
      f"view {name} needs images [n, h, w, c], got {list(x.shape)}: use noise "
      "or colour with gain and offset"
    )


def _text(value):
  return "/".join(f"{v:g}" for v in np.ravel(value))


STYLES: dict[str, View] = {
  "plain": PLAIN,
  "negative": colour(invert=True),
  "dark": gamma(2.0),
  "bright": gamma(0.5),
  "faded": contrast(0.4),
  "harsh": contrast(2.0),
  "soft": blur(1.0),
}


def style(name: str) -> View:
  """A view of `STYLES`, by name."""
  if name not in STYLES:
    raise unknown("style", name, STYLES)
  return STYLES[name]
