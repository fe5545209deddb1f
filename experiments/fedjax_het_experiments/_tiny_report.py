"""The arms of `fed_tiny` by name, and the tables of its report."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fedjax_het.core.types import Params, PyTree
from fedjax_het.masks import tree
from fedjax_het.masks.sparse_wire import mask_nbytes
from fedjax_het.training.arms import Arm
from fedjax_het.training.plots import format_bytes
from fedjax_het.training.report import markdown_table, plus_minus
from fedjax_het_experiments._tiny_masks import Choice

DENSE, UNIFORM, ERK = "FedAvg, dense", "uniform mask", "ERK mask"
SNIP, SYNFLOW = "SNIP", "SynFlow"
SELECTED, PROGRESSIVE = "BN selection alone", "progressive alone"
FEDTINY = "FedTiny"
PRUNEFL, FEDDST, LOTTERY = "PruneFL", "FedDST", "LotteryFL (own models)"

#: The first mask of the arms that do not keep theirs.
_FIRST = {
  PROGRESSIVE: UNIFORM,
  FEDTINY: SELECTED,
  PRUNEFL: UNIFORM,
  FEDDST: ERK,
}

#: Mask -> (weights, mask) of each seed.
Masks = Mapping[str, Sequence[tuple[Params, PyTree]]]


def charge(
  arms: Sequence[Arm],
  masks: Masks,
  chosen: Sequence[Choice],
  num_clients: int,
) -> list[Arm]:
  """Adds what was sent before the first round.

  That is the first mask, once to every client, and for the arms that have it
  the selection.

  Args:
    arms: of `compare`.
    masks: first masks.
    chosen: what was selected, one a seed.
    num_clients: N.
  """

  def one(arm):
    first = _FIRST.get(arm.name, arm.name)
    if first not in masks:
      return arm
    up, down = (
      0.0,
      num_clients * np.mean([mask_nbytes(mask) for _, mask in masks[first]]),
    )
    if first == SELECTED:
      up += np.mean([choice.up_bytes for choice in chosen])
      down += np.mean([choice.down_bytes for choice in chosen])
    return arm._replace(
      up_bytes=arm.up_bytes + up, down_bytes=arm.down_bytes + down
    )

  return [one(arm) for arm in arms]


def accuracy_table(arms: Sequence[Arm]) -> str:
  """The figure that the verdicts use, mean ± standard deviation."""
  rows = []
  for arm in arms:
    rows.append([arm.name, plus_minus(100 * arm.last_three)])
  return markdown_table(["arm", "mean of the last three evaluations (%)"], rows)


def layer_table(masks: Masks) -> str:
  """The density of each layer, and what a device holds of the model."""
  rows = []
  for name, pairs in masks.items():
    each = [list(tree.layer_density(mask).values()) for _, mask in pairs]
    weights, mask = pairs[0]
    total = sum(leaf.size for leaf in jax.tree.leaves(weights))
    kept = total - tree.num_maskable(weights) + int(tree.num_kept(mask))
    held = format_bytes(4 * kept + mask_nbytes(mask))
    means = 100 * np.mean(np.asarray(each), axis=0)
    rows.append([name, *(f"{mean:.2f}" for mean in means), held])
  weights, _ = next(iter(masks.values()))[0]
  layers = [f"{layer} (%)" for layer in tree.layer_shapes(weights)]
  return markdown_table(["first mask", *layers, "model on a device"], rows)


def notes(
  arms: Sequence[Arm],
  masks: Masks,
  chosen: Sequence[Choice],
  rates: Mapping[str, float],
  tune_seeds: int,
) -> list[str]:
  """The paragraphs below the table of arms.

  Args:
    arms, masks, chosen: as in `charge`.
    rates: that tuning chose.
    tune_seeds: how many seeds it looked at.
  """
  uniform = sum(int(choice.losses.argmin()) == 0 for choice in chosen)
  up, down = (
    format_bytes(float(np.mean([getattr(choice, way) for choice in chosen])))
    for way in ("up_bytes", "down_bytes")
  )
  return [
    "## The figure of the verdicts\n\n" + accuracy_table(arms),
    "LotteryFL is judged by its clients' own models on their own test data, all"
    " others by the global model on held-out data: its row is not comparable.",
    "## Density of each layer\n\n" + layer_table(masks),
    "Means over seeds of the first masks. FedTiny and FedDST keep these"
    " numbers; PruneFL starts from the uniform mask and changes its size,"
    " LotteryFL starts dense. A device holds the kept weights, the dense"
    " parameters and its mask; FedTiny's also a buffer for the gradients that"
    " it sends, PruneFL's in an adjustment a square for every weight.",
    f"BN selection: {len(chosen[0].losses)} candidates; the uniform one was the"
    f" best in {uniform} of {len(chosen)} seeds. It cost {up} up and {down}"
    " down in all. These bytes, and the first mask once to every client, are in"
    " the totals of the arms that have them.",
    "Learning rates, the best of three for every arm by the clients' own test"
    f" splits on {tune_seeds} tuning seeds (0: the second of each): "
    + "; ".join(f"{name}: {rate:g}" for name, rate in rates.items())
    + ".",
  ]
