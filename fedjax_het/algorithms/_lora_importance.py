"""What structured pruning removes, when adapters alone have gradients.

A frozen matrix W [I, O] has no gradient of its own.  With an adapter
s A B beside it, A [I, R], B [R, O], LoRAPrune takes the gradient that the next
step of A and B would amount to,

  G = A gB + gA B - gA gB,         score = |G * (W + s A B)|,

sums the score over the columns of q, k, v (gate, up) and the rows of o (down)
that belong to a head (a channel), divides what each matrix gives by its L2
norm, and adds up.  A running mean, .9 old + .1 new, decides.  That FedSpine
uses exactly this is an inference.  Here matrices are [I, O]: rows and columns
are swapped against the paper's.

Shape legend: I, O inputs and outputs of a matrix, R rank, G units of a group.

References:
  Zhang et al.: LoRAPrune, 2023, arXiv:2305.18403; official code,
  aim-uofa/LoRAPrune.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.algorithms._spine_structure import Keep, Structure, kernel
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key, Params

RANDOM = ("random", "same_random")  # a draw of each client, one for all
IMPORTANCES = ("lora", "magnitude", *RANDOM)
Score = dict[str, Array]  # group -> f32[G]


class Ramp(NamedTuple):
  """The share of the pruning ratio that is reached, by round.

  rounds: T, of the whole run.
  warm_up: rounds before the first unit is removed.
  cool_down: rounds at the end in which nothing is removed any more.
  """

  rounds: int
  warm_up: int = 0
  cool_down: int = 0

  def at(self, time: Array) -> Array:
    """1 - (1 - x)^3 for x from 0 to 1 between warm-up and cool-down.

    Args:
      time: f32[], rounds done, with the part of the one that runs.
    """
    length = self.rounds - self.warm_up - self.cool_down
    x = jnp.clip((time - self.warm_up) / length, 0, 1)
    return 1 - (1 - x) ** 3


def check_ramp(ramp: Ramp) -> None:
  """Raises a `UserError` for a ramp without a round to rise in."""
  least = min(ramp.warm_up, ramp.cool_down)
  if least < 0 or ramp.warm_up + ramp.cool_down >= ramp.rounds:
    raise UserError(
      f"{ramp.rounds} rounds with {ramp.warm_up} to warm up and "
      f"{ramp.cool_down} to cool down leave none to prune in: lower them"
    )


def lora_score(
  structure: Structure, merged: Params, adapters: Params, gradients: Params
) -> Score:
  """The score of every unit, from the gradients of the adapters.

  Args:
    structure: the units.
    merged: parameters with W + s A B in the place of W.
    adapters, gradients: name -> {"a": f32[I, R], "b": f32[R, O]}.
  """

  def one(name):
    of, by = adapters[name], gradients[name]
    estimate = of["a"] @ by["b"] + by["a"] @ of["b"] - by["a"] @ by["b"]
    return jnp.abs(estimate * kernel(merged, name))

  return per_unit(structure, {name: one(name) for name in adapters})


def magnitude_score(
  structure: Structure, merged: Params, adapters: Params
) -> Score:
  """As `lora_score`, of |W + s A B| in the same matrices."""
  return per_unit(
    structure, {name: jnp.abs(kernel(merged, name)) for name in adapters}
  )


def random_score(structure: Structure, key: Key) -> Score:
  """Uniform in [0, 1)."""
  return {
    group.name: jax.random.uniform(jax.random.fold_in(key, i), (group.size,))
    for i, group in enumerate(structure.groups)
  }


def per_unit(structure: Structure, score: Mapping[str, Array]) -> Score:
  """Sums scores f32[I, O] >= 0 of matrices over each unit's part of them.

  Matrices without a score give nothing.
  """
  out = {}
  for group in structure.groups:
    total = jnp.zeros(group.size)
    for names, axis in ((group.made_by, 0), (group.read_by, 1)):
      for name in names:
        if name in score:
          line = jnp.sum(score[name], axis)
          part = jnp.sum(line.reshape(group.size, -1), 1)
          size = jnp.linalg.norm(part)
          total = total + part / jnp.where(size > 0, size, 1)
    out[group.name] = total
  return out


def running(old: Score, new: Score) -> Score:
  """.9 old + .1 new."""
  return jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, new)


def cut(
  structure: Structure,
  score: Score,
  keep: Keep,
  ratio: Array,
  skip: Collection[int] = (),
) -> Keep:
  """Keeps all but round(ratio G) of the units of each kind.

  The units of a kind compete over all layers.  Those that were removed come
  back only after all others are kept, the best of them first; among equals the
  first one wins; the best unit of a layer always stays, and so do all units
  of the layers `skip`.

  Args:
    structure: the units.
    score: the larger, the longer a unit stays; NaN goes first.
    keep: what is there.
    ratio: f32[], of all units of each kind.
    skip: numbers of layers, from 0; -1 is the last.
  """
  kinds = dict.fromkeys(group.kind for group in structure.groups)
  out = {}
  for kind in kinds:
    own = [group for group in structure.groups if group.kind == kind]
    skipped = {layer % len(own) for layer in skip}
    points = [jnp.nan_to_num(score[g.name], nan=-1.0) for g in own]
    there = [keep[g.name] > 0 for g in own]
    must = [
      jnp.ones(group.size, bool)
      if layer in skipped
      else jnp.arange(group.size) == _order(points[layer], there[layer])[0]
      for layer, group in enumerate(own)
    ]
    must = jnp.concatenate(must)
    order = _order(jnp.concatenate(points), jnp.concatenate(there), must)
    size = must.shape[0]
    place = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size))
    stay = size - jnp.round(ratio * size).astype(jnp.int32)
    stay = jnp.maximum(stay, jnp.sum(must, dtype=jnp.int32))
    kept, start = (place < stay).astype(jnp.float32), 0
    for group in own:
      out[group.name] = kept[start : start + group.size]
      start += group.size
  return {group.name: out[group.name] for group in structure.groups}


def retained(score: Score, before: Keep, after: Keep) -> Array:
  """f32[]: the share of the score before a cut that is left after it, <= 1.

  1 if nothing was cut, or nothing scored.
  """

  def total(keep):
    return sum(jnp.sum(score[name] * keep[name]) for name in score)

  had = total(before)
  share = total(after) / jnp.where(had > 0, had, 1)
  return jnp.where(had > 0, jnp.minimum(share, 1), 1)


def _order(points: Array, there: Array, must: Array | None = None) -> Array:
  """i32[G]: the units from the one that stays longest."""
  keys = [-points, ~there]
  if must is not None:
    keys.append(~must)
  return jnp.lexsort(keys)
