"""Pruning at initialisation: one name for each way to choose the mask."""

from collections.abc import Callable
from typing import NamedTuple

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Examples, Key, Model, Params, PyTree
from fedjax_het.masks import saliency, select, synflow

SALIENCIES = ("synflow", "snip", "grasp", "magnitude", "random")


class Pruning(NamedTuple):
  """How the server chooses a mask before the first round.

  mask: (key, params) -> bool tree with exactly
    `budgets.surviving(params, density)` maskable weights True.
  density: d in (0, 1].
  """

  mask: Callable[[Key, Params], PyTree]
  density: float


def prune_at_init(
  model: Model,
  input_shape: tuple[int, ...],
  *,
  density: float,
  by: str = "synflow",
  iterations: int = 100,
  batch: Examples | None = None,
) -> Pruning:
  """Builds a pruning at initialisation; the key of its mask decides ties.

  Args:
    model: the network; for SynFlow of a network that normalises, its twin
      without normalisation (see `masks.synflow`), on the same parameters.
    input_shape: shape of one example.
    density: d in (0, 1], share of the maskable weights that stay.
    by: "synflow" (iterative, data-agnostic), "magnitude", "random", or, with a
      batch of public data, "snip" or "grasp".
    iterations: steps of SynFlow; 1 is one-shot.
    batch: public examples for "snip" and "grasp".

  Returns:
    A `Pruning`.

  Raises:
    UserError: an unknown saliency, or one that needs a batch and has none;
      `mask` raises where the density removes a layer.
  """
  if by not in SALIENCIES:
    raise unknown("saliency", by, SALIENCIES)
  if by in ("snip", "grasp") and batch is None:
    raise UserError(
      f"saliency {by!r} looks at data: give a public batch, or choose "
      "synflow, magnitude or random"
    )

  def prune(key, params):
    if by == "synflow":
      return synflow.synflow(
        model,
        params,
        input_shape,
        density=density,
        iterations=iterations,
        key=key,
      )[0]
    if by == "snip":
      scores = saliency.snip(model, params, batch)
    elif by == "grasp":
      scores = saliency.grasp(model, params, batch)
    elif by == "magnitude":
      scores = saliency.magnitude(params)
    else:
      scores = saliency.random(key, params)
    # a global ranking may empty a layer, through which nothing would flow
    return select.top_k_mask(scores, key, density=density, min_per_layer=1)

  return Pruning(prune, density)
