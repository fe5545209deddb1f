"""A batch on a cluster, in the tables that all planners read.

Shape legend: S sequences, J kinds of groups (`cost.Kinds`), D devices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fedjax_het.core.errors import UserError
from fedjax_het.seqpar import cost
from fedjax_het.seqpar.types import Cluster


class Problem(NamedTuple):
  """What has to be planned.

  lengths: i64[S].
  kinds: the groups on offer.
  seconds: f64[S, J], what a sequence adds to a group; inf where it is longer
    than the group holds.
  num_devices: D.
  capacity: tokens that all devices together hold at once.
  """

  lengths: np.ndarray
  kinds: cost.Kinds
  seconds: np.ndarray
  num_devices: int
  capacity: int

  def part(self, sequences: np.ndarray) -> "Problem":
    """The same cluster with only these sequences."""
    return self._replace(
      lengths=self.lengths[sequences], seconds=self.seconds[sequences]
    )


def make_problem(
  lengths: ArrayLike,
  cluster: Cluster,
  model: cost.ModelCost,
  degrees: Sequence[int] | None = None,
) -> Problem:
  """Checks a batch and tabulates what each sequence costs in each group.

  Args:
    lengths: tokens of each sequence, positive integers; at least one.
    cluster, model, degrees: as in `cost.kinds`.

  Raises:
    UserError: if there is no sequence or a length is no positive integer; if a
      sequence fits no group (names the longest such sequence, its length, the
      longest that would fit); and what `cost.kinds` raises.
  """
  given = np.asarray(lengths)
  if given.ndim != 1 or not given.size:
    raise UserError(
      f"lengths has shape {given.shape}: give a list of at least one length"
    )
  if given.dtype.kind not in "iu" or given.min() < 1:
    wrong = given[~(given >= 1) | (given != np.floor(given))]
    shown = wrong[0] if wrong.size else given.dtype
    raise UserError(f"lengths must be positive integers, not {shown}")
  given = given.astype(np.int64)
  offered = cost.kinds(cluster, model, degrees)
  fits = given[:, None] <= offered.tokens
  if not fits.any(1).all():
    worst = int(given.argmax())
    best = int(offered.tokens.argmax())
    raise UserError(
      f"sequence {worst} has {given[worst]} tokens, but the longest that fits "
      f"is {offered.tokens[best]} (degree {offered.degree[best]} of "
      f"{cluster.num_devices} devices): shorten or drop it"
      + _others(int((~fits.any(1)).sum()) - 1)
    )
  seconds = cost.sequence_seconds(given, cluster, model, offered)
  smallest = min(offered.blocks)
  return Problem(
    given,
    offered,
    np.where(fits, seconds, np.inf),
    cluster.num_devices,
    int(offered.tokens[offered.blocks[smallest]].sum()),
  )


def _others(count: int) -> str:
  return f" ({count} more are too long)" if count else ""
