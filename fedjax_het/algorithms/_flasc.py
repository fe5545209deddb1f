"""FLASC (CELLM): LoRA with separately sparse downloads and uploads.

The server keeps a whole vector v of adapters and head.  Clients receive its
largest entries, train *all* of it, and send the largest entries of the change;
the server's optimiser descends on the whole v.

Down: k values of 32 bits, k = d_down S, and their positions, the shorter of a
bitmap and a list; the same for all clients of a tier.  Up: the same with d_up.
Vectors (a head's bias) and, without `include_full`, the head travel whole.
Once: the frozen base.  A density of 1 costs no positions down; up it does in a
tier of 1 among sparser ones.

B is zero at first.  With scope "global" the first masks then hold entries of A
and the head only, none of B: B still trains, from zero, and what the uploads
bring of it enters later masks ("self-heals"), but a mask that is frozen early
leaves the adapter dead.  With scope "matrix", our default, every matrix keeps
its share; in round 0 the positions kept of B are drawn at random among its
zeros, so they say nothing yet, and A starts sparse.

Departures: FLASC ranks everything together and evaluates with the mask of the
round before; here the global model is what would be sent next.  Biases are
never pruned.  LoRA's dropout is left out.

References:
  Kuo, Raje, Rajesh and Smith: Federated LoRA with Sparse Communication,
  arXiv:2406.05233 (FLASC; algorithm, and code at imkevinkuo/flasc).
  CELLM, arXiv:2407.20557 (the same method; only its abstract was read).
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms._lora_messages import (
  known_up,
  nonzero_up,
  positions_down,
)
from fedjax_het.algorithms._lora_parts import (
  Scope,
  layout_of,
  per_tier,
  top_k,
)
from fedjax_het.algorithms._lora_rounds import defaults, lora_rounds
from fedjax_het.core import local
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Algorithm
from fedjax_het.models.lora import Adapted


def flasc(
  adapted: Adapted,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  server_optimizer: optax.GradientTransformation | None = None,
  down_density: float | Sequence[float] = 0.25,
  up_density: float | Sequence[float] = 0.25,
  scope: Scope = "matrix",
  include_full: bool = True,
  down_decay: tuple[float, int] = (1.0, 1),
  evaluate: Literal["sent", "whole"] = "sent",
  loss: local.Loss | None = None,
  by_examples: bool = False,
) -> Algorithm:
  """Trains adapters through sparse messages.

  With m = top-k of |v| a client starts from m v, trains every coordinate to
  w_k, and sends top-k of delta_k = w_k - m v; the server optimiser sees
  -mean_k delta_k, in which what was not sent counts as 0.  Densities of 1 make
  it `fed_lora`.

  Args:
    adapted: the model, of `models.adapt`.
    optimizer: the clients', made afresh every round; FLASC: SGD, momentum 0.9.
    batch_size: B.
    epochs: E, local epochs per round.
    server_optimizer: of v; default `optax.sgd(1.0)`; FLASC: AdamW.
    down_density, up_density: d in (0, 1], the share of the prunable entries
      that travels; or one for each tier of clients: client k has
      density[k % T].
    scope: "matrix" takes the same share of every matrix, "global" the largest
      entries of all together (FLASC).
    include_full: prunes the matrices trained in full as well (FLASC's main
      script; its tiers script does not).
    down_decay: (g, f): in round t the downloads keep g^floor(t / f) of what
      they kept at first, one entry a segment at least.
    evaluate: the global model: "sent", m v as clients receive it next (the
      densest tier's), or "whole", v.
    loss: (parameters, batch, key) -> f32[] over `adapted.model`; default: its
      mean cross-entropy.
    by_examples: weights clients by their examples; FLASC counts heads.

  Returns:
    An `Algorithm`; metrics: loss.

  Raises:
    UserError: densities or decay out of range, tiers of different numbers, an
      unknown scope or model to evaluate.
  """
  layout = layout_of(adapted, include_full=include_full)
  downs, ups = per_tier(down_density), per_tier(up_density)
  tiers = max(len(downs), len(ups))
  if {len(downs), len(ups)} - {1, tiers}:
    raise UserError(
      f"{len(downs)} down densities and {len(ups)} up densities: give one for "
      "all clients, or one a tier both ways"
    )
  if evaluate not in ("sent", "whole"):
    raise unknown("model to evaluate", evaluate, ("sent", "whole"))
  shrink, every = down_decay
  if not 0 < shrink <= 1 or every < 1:
    raise UserError(
      f"down_decay {down_decay}: give a factor in (0, 1] and 1 or more rounds"
    )
  down = top_k(layout, downs * (tiers // len(downs)), scope)
  up = top_k(layout, ups * (tiers // len(ups)), scope)
  whole = all(down.dense) and shrink == 1

  def choose(vector, done, key, before):
    if whole:
      return before
    factor = jnp.float32(shrink) ** (done // every).astype(jnp.float32)
    return masks_of(down, vector, key, before, factor)

  shared = defaults(
    adapted,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    server_optimizer=server_optimizer,
    loss=loss,
    by_examples=by_examples,
  )

  def largest(scores, key, tier):
    return up.mask(scores, key, tier, jnp.float32(1))

  return lora_rounds(
    adapted,
    layout,
    shared,
    tiers=tiers,
    choose=choose,
    down=positions_down(
      down.segments, tuple(not d or shrink < 1 for d in down.dense)
    ),
    up=nonzero_up(up.segments, None if all(up.dense) else largest),
    frozen_outside=False,
    masked_model=evaluate == "sent",
  )


def federated_select(
  adapted: Adapted,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  server_optimizer: optax.GradientTransformation | None = None,
  density: float | Sequence[float] = 0.25,
  scope: Scope = "matrix",
  include_full: bool = True,
  loss: local.Loss | None = None,
  by_examples: bool = False,
) -> Algorithm:
  """Clients train only what they received: the largest entries of v.

  As `flasc`, but gradients outside the mask are 0 and all changes inside it
  travel.  The server knows their positions: up they cost nothing.

  Departures: Federated Select lets clients choose by keys what they receive;
  this is the form in which FLASC compares it, with the server's top-k.

  Args:
    density: of the messages both ways, or one a tier.

  The other arguments, the result and the errors are those of `flasc`.

  References:
    Charles et al.: Federated Select: A Primitive for Communication- and
    Memory-Efficient Federated Learning, arXiv:2208.09432.
  """
  layout = layout_of(adapted, include_full=include_full)
  down = top_k(layout, per_tier(density), scope)
  shared = defaults(
    adapted,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    server_optimizer=server_optimizer,
    loss=loss,
    by_examples=by_examples,
  )
  return lora_rounds(
    adapted,
    layout,
    shared,
    tiers=len(down.counts),
    choose=lambda vector, done, key, before: masks_of(
      down, vector, key, before
    ),
    down=positions_down(down.segments, tuple(not d for d in down.dense)),
    up=known_up(),
    frozen_outside=True,
    masked_model=True,
  )


def masks_of(down, vector, key, before, factor=None):
  """bool[T, V]: the largest entries of |vector| for each tier.

  Args:
    down: a `TopK`;  vector: f32[V];  key: of the ties, the same for all tiers.
    before: bool[T, V], gives the shape.
    factor: f32[] on the counts; None is 1.
  """
  sparse = sum(down.segments)
  factor = jnp.float32(1) if factor is None else factor
  rows = jax.vmap(down.mask, in_axes=(None, None, 0, None))(
    jnp.abs(vector[:sparse]), key, jnp.arange(before.shape[0]), factor
  )
  rest = jnp.ones((before.shape[0], vector.size - sparse), bool)
  return jnp.concatenate([rows, rest], axis=1)
