"""Candidate densities: one number of kept weights, spread over layers anew."""

import math

import numpy as np

from fedjax_het.core.errors import UserError
from fedjax_het.masks import budgets


def density_pool(
  shapes: budgets.Shapes,
  density: float,
  size: int,
  *,
  seed: int,
  spread: float = 1.0,
) -> np.ndarray:
  """How many weights each layer keeps in each of C candidates.

  The first candidate is uniform.  In the others the logarithms of the densities
  are normal around it, scaled until the sum is d P, with at most all weights of
  a layer and at least one for each of its outputs, as far as the uniform
  candidate has so many: a network that cannot name some classes may well have
  the lowest loss before it is trained.

  Args:
    shapes: layer name -> shape, from `tree.layer_shapes`.
    density: d in (0, 1], of all layers together.
    size: C.
    seed: of the draw, an integer >= 0.
    spread: standard deviation of the logarithms.

  Returns:
    i32[C, L], rows of one sum.

  Raises:
    UserError: no candidate asked for, a density outside (0, 1], or one below a
      weight in each layer.
  """
  if size < 1:
    raise UserError(f"{size} candidates: ask for 1 or more")
  uniform = budgets.uniform(shapes, density)
  sizes = np.array([math.prod(shape) for shape in shapes.values()], float)
  outputs = np.array([shape[-1] for shape in shapes.values()], float)
  if density * sizes.sum() < len(sizes):
    raise UserError(
      f"density {density:g} keeps less than one weight a layer: use at least "
      f"{math.ceil(1e6 * len(sizes) / sizes.sum()) / 1e6:g}"
    )
  least = np.maximum(1, np.minimum(outputs, density * sizes)) / sizes
  rng = np.random.default_rng(seed)
  rows = [uniform]
  for _ in range(size - 1):
    raw = np.exp(spread * rng.normal(size=sizes.size))
    shares = _scaled(raw, least, sizes, density)
    rows.append(dict(zip(shapes, shares, strict=True)))
  counts = [list(budgets.counts(shapes, row).values()) for row in rows]
  return np.array(counts, np.int32)


def _scaled(
  raw: np.ndarray, least: np.ndarray, sizes: np.ndarray, density: float
) -> np.ndarray:
  """s raw, cut to [least, 1], with s such that the sum is d P: bisection."""
  low, high = 0.0, 1 / raw.min()
  for _ in range(200):
    middle = (low + high) / 2
    kept = np.clip(middle * raw, least, 1)
    if kept @ sizes < density * sizes.sum():
      low = middle
    else:
      high = middle
  return np.clip(high * raw, least, 1)
