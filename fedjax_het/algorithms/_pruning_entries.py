"""Methods whose masks move while they train, or that clients prune."""

from collections.abc import Callable

from fedjax_het.algorithms._entries import Federation, entry
from fedjax_het.algorithms._entries import pruned as _pruned
from fedjax_het.algorithms._fed_dst import fed_dst
from fedjax_het.algorithms._fed_tiny import fed_tiny
from fedjax_het.algorithms._lottery_fl import lottery_fl
from fedjax_het.algorithms._prune_fl import prune_fl
from fedjax_het.core.types import Algorithm


def _moving(
  factory: Callable[..., Algorithm], federation: Federation, **options
) -> Algorithm:
  """An instance with a first mask of density 0.5, for N clients."""
  return _pruned(
    factory, federation, num_clients=federation.num_clients, **options
  )


PRUNING = {
  "fed_tiny": entry(
    fed_tiny,
    "a mask that the server moves, block by block",
    make=_moving,
    adjust_until=25,
    blocks=2,
  ),
  "fed_dst": entry(
    fed_dst,
    "masks that clients move, averaged and pruned again",
    make=_moving,
    adjust_every=10,
    adjust_until=25,
    share=0.3,
  ),
  "prune_fl": entry(
    prune_fl,
    "a mask whose size follows gradients per cost",
    make=_moving,
    adjust_every=10,
  ),
  "lottery_fl": entry(
    lottery_fl,
    "each client prunes its own part of the model",
    judged_by="client_mean",
    density=0.5,
    share=0.5,
    accuracy=0.0,
  ),
}
