"""HetLoRA: each tier of clients trains some ranks of the adapters.

A rank r of an adapter is column r of A and row r of B.  A client of rank r_k
receives r_k of the R ranks and sends back their changes.

Down and up: 32 bits for each entry of its ranks, and what is trained in full
whole.  With keep="largest" R bits an adapter more down: which ranks.  Once: the
frozen base.

Departures: the paper also lets clients prune their own rank while they train,
and weights them by the norm of their update; here ranks stay and clients count
equally, as in FLASC's comparison.  Clients compute at full rank under a mask
(one shape for all), so the virtual clock charges full steps; bytes are those of
their ranks.

References:
  Cho et al.: Heterogeneous LoRA for Federated Fine-tuning of On-Device
  Foundation Models, arXiv:2401.06432.
"""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import optax

from fedjax_het.algorithms._kept_values import holders_mean
from fedjax_het.algorithms._lora_messages import known_down, known_up
from fedjax_het.algorithms._lora_parts import layout_of
from fedjax_het.algorithms._lora_rounds import defaults, lora_rounds
from fedjax_het.core import local
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Algorithm
from fedjax_het.masks import select
from fedjax_het.models.lora import Adapted


def het_lora(
  adapted: Adapted,
  ranks: Sequence[int],
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  server_optimizer: optax.GradientTransformation | None = None,
  keep: Literal["first", "largest"] = "first",
  by_holders: bool = False,
  loss: local.Loss | None = None,
  by_examples: bool = False,
) -> Algorithm:
  """Pads the clients' adapters with zeros to the full rank and averages.

  Args:
    adapted: the model at the full rank R.
    ranks: r in 1 ... R; client k has ranks[k % len(ranks)].
    keep: "first" r ranks, or the r "largest" rows of each B by the sum of their
      absolute values (the lower rank wins a tie, so the first r at first).
    by_holders: divides each entry by the clients that hold it; else who does
      not hold it counts as no change.

  The other arguments and the result are those of `flasc`; the global model is
  the whole one.

  Raises:
    UserError: ranks out of range, or an unknown `keep`.
  """
  if keep not in ("first", "largest"):
    raise unknown("ranks to keep", keep, ("first", "largest"))
  layout = layout_of(adapted, include_full=False)
  where = {name: i for i, name in enumerate(layout.names)}
  adapters = [name[:-2] for name in layout.names if name.endswith("/b")]
  full = layout.shapes[where[f"{adapters[0]}/b"]][0]
  if not ranks or not all(1 <= r <= full for r in ranks):
    raise UserError(
      f"ranks {list(ranks)}: give at least one, each in 1 ... {full}, the rank "
      "of the adapters"
    )
  lowest_wins = jnp.arange(full, dtype=jnp.int32)[::-1]

  def components(vector, rank):
    """name -> bool[R], the ranks of each adapter that travel."""
    if keep == "first":
      return dict.fromkeys(adapters, jnp.arange(full) < rank)
    parts = layout.unravel(vector)["lora"]
    sizes = {n: jnp.abs(parts[n[5:]]["b"]).sum(axis=1) for n in adapters}
    return {
      n: select.exact_top_k(size, lowest_wins, rank)
      for n, size in sizes.items()
    }

  def mask_of(vector, rank):
    held = components(vector, rank)
    parts = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
      flag = jnp.ones(shape, bool)
      if name.startswith("lora/"):
        mine = held[name[:-2]]
        flag &= mine[None] if name.endswith("/a") else mine[:, None]
      parts.append(flag.reshape(-1))
    return jnp.concatenate(parts)

  def note(mask):
    parts = layout.unravel(mask)["lora"]
    return jnp.concatenate([parts[n[5:]]["b"][:, 0] for n in adapters])

  up = known_up()
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
    tiers=len(ranks),
    choose=lambda vector, done, key, before: jnp.stack(
      [mask_of(vector, rank) for rank in ranks]
    ),
    down=known_down(note if keep == "largest" else None),
    up=up._replace(reducer=holders_mean()) if by_holders else up,
    frozen_outside=True,
    masked_model=False,
  )
