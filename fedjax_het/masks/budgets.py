"""How many weights each layer may keep.

Everything here is arithmetic on shapes, on the host: counts are static, so
that the kept weights have a static shape under jit.
"""

import math
from collections.abc import Mapping

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Params
from fedjax_het.masks import tree as mask_tree

Shapes = Mapping[str, tuple[int, ...]]


def surviving(params: Params, density: float) -> int:
  """nz = round(d P), how many weights `density` keeps: an int, also under jit.

  Args:
    params: parameters (or scores, or a mask) of one model.
    density: d in (0, 1], kept share of the P maskable weights.
  """
  _check_range(density)
  return round(density * mask_tree.num_maskable(params))


def check_density(params: Params, density: float) -> None:
  """Refuses a density at which some layer's fair share is below one weight.

  A layer of P_l weights counts as removed when d P_l < 1.  A global ranking
  may still leave it a weight (SynFlow usually does), but nothing promises it;
  who wants that passes explicit counts and checks the mask
  (`tree.no_layer_empty`).  Only shapes are read, so this works under jit.

  Args:
    params: parameters of one model, or their shapes.
    density: d, kept share of the maskable weights.

  Raises:
    UserError: d is not in (0, 1], or it removes a layer; the message names
      the smallest layer and the smallest density that keeps one weight of it.
  """
  _check_range(density)
  sizes = _sizes(mask_tree.layer_shapes(params))
  name = min(sizes, key=lambda name: sizes[name])
  if density * sizes[name] < 1 - 1e-9:  # so that d = 1 / P_l passes
    # rounded up, so that the advice itself passes
    smallest = math.ceil(1e6 / sizes[name]) / 1e6
    raise UserError(
      f"density {density:g} removes layer {name!r}: {density:g} x "
      f"{sizes[name]} weights is below one; use a density of at least "
      f"{smallest:g}"
    )


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
  """The same density for every layer."""
  _check_range(density)
  return dict.fromkeys(shapes, density)


def erk(shapes: Shapes, density: float) -> dict[str, float]:
  """Erdos-Renyi-kernel densities: small layers are kept denser.

  d_l = min(1, eps r_l) with r_l = sum(dims_l) / prod(dims_l) and eps such
  that sum_l d_l P_l = d P.  Layers that would exceed 1 are fixed dense and
  eps is solved again for the rest.

  Args:
    shapes: layer name -> shape, from `tree.layer_shapes`.
    density: d in (0, 1], of all the layers together.

  Returns:
    Layer name -> density in (0, 1].

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020,
    arXiv:1911.11134, section 3.
  """
  _check_range(density)
  sizes = _sizes(shapes)
  raw = {name: sum(shapes[name]) / sizes[name] for name in shapes}
  total = density * sum(sizes.values())
  full: set[str] = set()
  while len(full) < len(shapes):
    room = total - sum(sizes[name] for name in full)
    rest = [name for name in shapes if name not in full]
    eps = room / sum(raw[name] * sizes[name] for name in rest)
    over = {name for name in rest if eps * raw[name] > 1}
    if not over:
      return {n: 1.0 if n in full else eps * raw[n] for n in shapes}
    full |= over
  return dict.fromkeys(shapes, 1.0)


def counts(shapes: Shapes, densities: Mapping[str, float]) -> dict[str, int]:
  """Rounds layer densities to kept weights without losing any in total.

  Largest remainders: every layer gets floor(d_l P_l), and the layers with the
  largest fractions get one more until the sum is round(sum_l d_l P_l).

  Args:
    shapes: layer name -> shape.
    densities: layer name -> density in [0, 1], e.g. from `erk`.

  Returns:
    Layer name -> number of kept weights, 0 <= n_l <= P_l.

  Raises:
    UserError: a layer has no density, or one outside [0, 1].
  """
  sizes = _sizes(shapes)
  for name in shapes:
    if not 0 <= densities.get(name, -1) <= 1:
      raise UserError(
        f"layer {name!r} has density {densities.get(name)}: give every layer "
        "one in [0, 1]"
      )
  wanted = {name: densities[name] * sizes[name] for name in shapes}
  kept = {name: math.floor(want) for name, want in wanted.items()}
  missing = round(sum(wanted.values())) - sum(kept.values())
  by_fraction = sorted(
    (name for name in shapes if kept[name] < sizes[name]),
    key=lambda name: kept[name] - wanted[name],
  )
  for name in by_fraction[:missing]:
    kept[name] += 1
  return kept


def _sizes(shapes: Shapes) -> dict[str, int]:
  return {name: math.prod(shape) for name, shape in shapes.items()}


def _check_range(density: float) -> None:
  if not 0 < density <= 1:
    raise UserError(
      f"density {density:g} is not in (0, 1]: it is the share of weights that "
      "are kept"
    )
