"""A training step that runs any plan as one compiled program.

Every device scans over the rounds of the step; in each it takes part in a group
of 1, 2, 4, ... neighbours, or in none.  The degree is data: attention is a
`lax.switch` over the degrees, each branch exchanging along as many of the
mesh's axes, all of size 2.  A group waits for its own members only, and no plan
ever compiles anything new.

That asks for groups aligned as buddies and for equal arrays on all devices
(`pack.Rounds`); `groups.make_group_step` compiles a program a group instead.

Nothing is jitted here: jit the step, donating its state.  It has run on forced
CPU devices and on CPU processes (gloo); collectives in branches that only some
devices take have not been tried on GPUs.

Shape legend: D devices, R rounds, K tokens a device holds, P parameters.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from fedjax_het.core.errors import UserError
from fedjax_het.core.local import descend
from fedjax_het.core.types import Array, Params
from fedjax_het.models.transformer import Attention, Tokens, Transformer
from fedjax_het.seqpar.attention import (
  BLOCK,
  group_attention,
  head_limit,
  split_degree,
)
from fedjax_het.seqpar.pack import Rounds


class StepState(NamedTuple):
  """params, and the state of the optimiser."""

  params: Params
  opt_state: Any


Step = Callable[[StepState, Any], tuple[StepState, Array]]


def init_state(
  params: Params, optimizer: optax.GradientTransformation
) -> StepState:
  """The state before the first step; put it on the mesh with
  `core.mesh.replicate`."""
  return StepState(params, optimizer.init(params))


def token_loss(
  model: Transformer, params: Params, tokens: Tokens, attention: Attention
) -> Array:
  """f32[]: weighted sum of the cross-entropies of a row's targets."""
  logits = model.packed(params, tokens, attention).astype(jnp.float32)
  each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens.target)
  return jnp.sum(each * tokens.weight)


def ulysses_limit(model: Transformer, most: int | None = None) -> int:
  """Devices of the largest all-to-all: what the heads allow, at most `most`.

  Args:
    model: a transformer.
    most: a power of two; 1 for rings only, None for no other limit.
  """
  limit = head_limit(model.shape.heads)
  if most is None:
    return limit
  if most < 1 or most & (most - 1):
    raise UserError(f"Ulysses over at most {most} devices: give a power of two")
  return min(limit, most)


def buddy_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh whose axes have size 2, so that buddies share the last ones.

  Args:
    devices: in the plan's order (default: all, of all processes).  A factor of
      their number that is odd becomes the first axis, which no group crosses.
  """
  devices = np.asarray(jax.devices() if devices is None else devices)
  twos = head_limit(devices.size).bit_length() - 1
  odd = devices.size >> twos
  names = [f"buddies_{1 << i}" for i in reversed(range(twos))]
  return Mesh(devices.reshape(odd, *[2] * twos), ("blocks", *names))


def make_step(
  model: Transformer,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  ladder: Sequence[int],
  limit: int | None = None,
  block: int = BLOCK,
) -> Step:
  """Builds the step (state, Rounds) -> (state, loss f32[]).

  The loss is the mean over all targets of the batch, the gradient that of the
  loss, as one device would compute them.

  Args:
    model: what to train.
    optimizer: any; it gets the whole gradient.
    mesh: from `buddy_mesh`.
    ladder: sizes of a device's share that are compiled, increasing up to K
      (`pack.make_ladder`): a device computes on the smallest that holds its
      tokens.
    limit: most devices of an all-to-all; default `ulysses_limit(model)`.
    block: tokens of an attention block.

  Returns:
    A pure function; state is replicated over `mesh`, the batch comes from
    `place`.  It raises ValueError if the batch was packed for another D or K.

  Raises:
    ValueError: the mesh's axes but the first are not of size 2.
  """
  if set(mesh.devices.shape[1:]) - {2}:
    raise ValueError(f"axes {mesh.devices.shape}: take a mesh of `buddy_mesh`")
  limit = ulysses_limit(model, limit)
  attentions = _attentions(mesh, limit, block)
  axes = mesh.axis_names

  def train(params, tokens, level, size, total):
    def attention(*args):
      return lax.switch(level, attentions, *args)

    tokens = Tokens(*(leaf[:size] for leaf in tokens))
    part = jax.value_and_grad(token_loss, 1)(model, params, tokens, attention)
    return jax.tree.map(jnp.add, total, part)

  def local(params, tokens, level, held):
    def one_round(total, batch):
      tokens, level, held = batch
      rungs = [
        functools.partial(train, params, tokens, level[0], size)
        for size in (0, *ladder)
      ]
      rungs[0] = lambda total: total  # no task in this round
      rung = jnp.searchsorted(jnp.array([0, *ladder]), held[0])
      return lax.switch(rung, rungs, total), None

    zero = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    total, _ = lax.scan(one_round, zero, (tokens, level, held))
    return lax.psum(total, axes)

  rows = Spec(None, axes)
  sums = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(Spec(), rows, rows, rows),
    out_specs=Spec(),
    # devices take different branches: nothing to infer about what varies
    check_vma=False,
  )

  def step(state, batch):
    num_devices = batch.level.shape[1]
    capacity = batch.tokens.token.shape[1] // num_devices
    if num_devices != mesh.size:
      raise ValueError(f"a plan for {num_devices} devices on {mesh.size}")
    if capacity != ladder[-1]:
      raise ValueError(
        f"a batch of {capacity} tokens a device, a ladder up to {ladder[-1]}"
      )
    total = sums(state.params, batch.tokens, batch.level, batch.held)
    return apply_sums(optimizer, state, total, batch.weight)

  return step


def apply_sums(optimizer, state: StepState, total, weight: Array):
  """(state, loss) from the sums (loss, gradient) over all targets."""
  loss, grads = jax.tree.map(
    lambda leaf: leaf / weight.astype(leaf.dtype), total
  )
  params, opt_state = descend(optimizer, grads, state.opt_state, state.params)
  return StepState(params, opt_state), loss


def place(batch: Rounds, mesh: Mesh) -> Rounds:
  """Puts a batch on the mesh; each process gives the parts of its devices."""
  rows = NamedSharding(mesh, Spec(None, mesh.axis_names))
  whole = NamedSharding(mesh, Spec())

  def put(leaf):
    leaf = np.asarray(leaf)
    sharding = rows if leaf.ndim else whole
    return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

  return jax.tree.map(put, batch)


def _attentions(mesh: Mesh, limit: int, block: int) -> list[Attention]:
  """One attention a degree: 1, 2, 4, ... up to all buddies."""
  buddies = mesh.axis_names[1:]
  found = []
  for level in range(len(buddies) + 1):
    mine = buddies[len(buddies) - level :]
    ring, _ = split_degree(1 << level, limit)
    rings = ring.bit_length() - 1
    found.append(
      group_attention(mine[:rings], mine[rings:], turn="hypercube", block=block)
    )
  return found
