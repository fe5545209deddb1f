"""SparseAdapter: adapters pruned once; what is left trains, the rest is dead.

The first rounds are dense.  Then the largest entries of |v| are kept for good:
the others are 0 and never move again, neither at clients nor at the server.

Down and up: everything while dense, then 32 bits for each kept entry.  Once:
the frozen base, and the mask when it is fixed, to every client (the shorter of
a bitmap and a list in each segment).

How it is fixed decides everything.  B is zero at first: with scope "global" and
a mask taken after one round, when B has hardly moved, the mask keeps A and the
head, B stays zero, and only the head learns.  `warm_rounds` gives B time.

Departures: SparseAdapter prunes at initialisation, on one machine, by several
scores (SNIP is its best); this is the federated form in which FLASC compares
it, by magnitude.

References:
  He et al.: SparseAdapter: An Easy Approach for Improving the
  Parameter-Efficiency of Adapters, EMNLP 2022, arXiv:2210.04284.
"""

import jax.numpy as jnp
import optax

from fedjax_het.algorithms._flasc import masks_of
from fedjax_het.algorithms._lora_messages import known_down, known_up
from fedjax_het.algorithms._lora_parts import Scope, layout_of, top_k
from fedjax_het.algorithms._lora_rounds import defaults, lora_rounds
from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm
from fedjax_het.models.lora import Adapted


def sparse_adapter(
  adapted: Adapted,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  server_optimizer: optax.GradientTransformation | None = None,
  density: float = 0.25,
  warm_rounds: int = 1,
  scope: Scope = "matrix",
  include_full: bool = True,
  loss: local.Loss | None = None,
  by_examples: bool = False,
) -> Algorithm:
  """Trains the entries that were largest after the first rounds.

  Args:
    density: d in (0, 1], the share of the prunable entries that is kept.
    warm_rounds: dense rounds before the mask is taken; FLASC: 1.

  The other arguments and the result are those of `flasc`; the global model is
  the pruned vector.

  Raises:
    UserError: a density out of range, an unknown scope, or warm_rounds < 0.
  """
  if warm_rounds < 0:
    raise UserError(f"warm_rounds {warm_rounds}: give 0 or more")
  layout = layout_of(adapted, include_full=include_full)
  kept = top_k(layout, (density,), scope)

  def choose(vector, done, key, before):
    fresh = masks_of(kept, vector, key, before)
    return jnp.where(done == warm_rounds, fresh, before)

  return lora_rounds(
    adapted,
    layout,
    defaults(
      adapted,
      optimizer=optimizer,
      batch_size=batch_size,
      epochs=epochs,
      server_optimizer=server_optimizer,
      loss=loss,
      by_examples=by_examples,
    ),
    tiers=1,
    choose=choose,
    down=known_down(),
    up=known_up(),
    frozen_outside=True,
    masked_model=True,
    setup_bytes=_mask_bytes(kept.segments, kept.counts[0]),
  )


def _mask_bytes(segments, counts) -> int:
  """A mask on the wire as in `masks.sparse_wire`."""
  bits = [
    min(size, count * max(1, (size - 1).bit_length()))
    for size, count in zip(segments, counts, strict=True)
  ]
  return sum(4 + -(-b // 8) for b in bits)
