"""What the server of `_stale_inversion` remembers of its late clients.

Estimates wait here for their truth: when client k's update from w^s arrives in
round s + tau_k, that is what the server's estimate of round s should have been.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _gradient_inversion as inversion
from fedjax_het.algorithms._gradient_inversion import Search, Synthetic
from fedjax_het.algorithms._stale import Arrivals
from fedjax_het.core.types import Array, Key, Params

_FIGURES = "inverted", "inversion_error", "e1", "e2", "cosine1", "cosine2"


class Memory(NamedTuple):
  """What the server remembers of its M late clients.

  key: of random starts.
  start: [M, S, ...], the last D_rec;  seen: bool[M], whether there is one.
  round: i32[M, Q], rounds of the estimates that await their truth, or -1.
  inverted, late: trees of [M, Q, ...], the estimate and the raw late update.
  count: i32[M], estimates made.
  off: bool[M], switched back.
  judged: bool[M], whether a truth ever came.
  figures: f32[] each, see `inverted_fed_avg`.
  """

  key: Key
  start: Synthetic
  seen: Array
  round: Array
  inverted: Params
  late: Params
  count: Array
  off: Array
  judged: Array
  figures: dict[str, Array]


def init(
  key: Key, params: Params, search: Search, members: int, pending: int
) -> Memory:
  """Nothing remembered yet.

  Args:
    key: of random starts.
    params: of the model.
    search: gives the shapes of D_rec.
    members: M;  pending: Q.
  """

  def of_each(*shape):
    return jax.tree.map(
      lambda leaf: jnp.zeros((members, *shape, *leaf.shape), leaf.dtype),
      params,
    )

  start = jax.tree.map(
    lambda leaf: jnp.zeros((members, *leaf.shape), leaf.dtype),
    jax.eval_shape(lambda: inversion.draw(search, jax.random.key(0))),
  )
  no = jnp.zeros(members, bool)
  return Memory(
    key=key,
    start=start,
    seen=no,
    round=jnp.full((members, pending), -1, jnp.int32),
    inverted=of_each(pending),
    late=of_each(pending),
    count=jnp.zeros(members, jnp.int32),
    off=no,
    judged=no,
    figures=dict.fromkeys(_FIGURES, jnp.float32(0)),
  )


def judge(
  memory: Memory, arrivals: Arrivals, slot: Array, t: Array, switch_back: bool
) -> Memory:
  """Compares old estimates with what has now arrived for their round."""
  members = memory.seen.shape[0]
  mine = jnp.minimum(slot, members - 1)
  asked = memory.round[mine] == (t - arrivals.delay)[:, None]  # [C, Q]
  known = (slot < members) & asked.any(axis=1)
  place = jnp.argmax(asked, axis=1)

  def against(compare, estimates):
    then = jax.tree.map(lambda leaf: leaf[mine, place], estimates)
    return jax.vmap(compare)(then, arrivals.delta)

  e1 = against(inversion.relative_error, memory.inverted)
  e2 = against(inversion.relative_error, memory.late)
  told = latest(
    memory.figures,
    known,
    e1=e1,
    e2=e2,
    cosine1=against(_cosine, memory.inverted),
    cosine2=against(_cosine, memory.late),
  )
  target = jnp.where(known, slot, members)
  worse = jnp.where(known & (e1 > e2) & switch_back, slot, members)
  return memory._replace(
    figures=told,
    judged=memory.judged.at[target].set(True, mode="drop"),
    off=memory.off.at[worse].set(True, mode="drop"),
  )


def keep(
  memory: Memory,
  target: Array,
  t: Array,
  found: Synthetic,
  moved: Params,
  late: Params,
) -> Memory:
  """Remembers the estimates of round t, until their truth comes.

  Args:
    target: i32[C], place among the late clients, M for no estimate.
    found: D_rec [C, ...];  moved, late: trees of [C, ...].
  """
  members, pending = memory.round.shape
  place = memory.count[jnp.minimum(target, members - 1)] % pending

  def put(old, new):
    return old.at[target].set(new, mode="drop")

  def add(old, new):
    return old.at[target, place].set(new, mode="drop")

  return memory._replace(
    start=jax.tree.map(put, memory.start, found),
    seen=put(memory.seen, True),
    round=add(memory.round, t),
    inverted=jax.tree.map(add, memory.inverted, moved),
    late=jax.tree.map(add, memory.late, late),
    count=memory.count.at[target].add(1, mode="drop"),
  )


def latest(
  figures: dict[str, Array], real: Array, **values: Array
) -> dict[str, Array]:
  """`figures` with the mean of each f32[C] over `real`, if there is any."""
  share = real.astype(jnp.float32) / jnp.maximum(jnp.sum(real), 1).astype(
    jnp.float32
  )
  some = jnp.any(real)
  return figures | {
    name: jnp.where(some, jnp.sum(share * value), figures[name])
    for name, value in values.items()
  }


def _cosine(a: Params, b: Params) -> Array:
  """f32[]: between two trees; 0 if one is zero."""
  dot = optax.tree.vdot(a, b)
  size = optax.tree.norm(a) * optax.tree.norm(b)
  return jnp.where(size > 0, dot / jnp.where(size > 0, size, 1), 0)


def figures(memory: Memory) -> dict[str, Array]:
  """What the server reports, f32[] each."""
  return memory.figures | {
    "judged": jnp.mean(memory.judged.astype(jnp.float32)),
    "switched": jnp.mean(memory.off.astype(jnp.float32)),
  }
