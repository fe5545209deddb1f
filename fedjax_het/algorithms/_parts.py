"""Personal and shared parameters, chosen by name; methods that share a part.

A parameter's name is its path, e.g. "Dense_1/kernel".  A part of a
parameter tree is that tree with None in place of the others' leaves: it maps,
sums and travels like any tree, and only its own leaves cost bytes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.algorithms import _memory
from fedjax_het.core import reduce, wire
from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import (
  Algorithm,
  Array,
  ClientData,
  Key,
  Model,
  Params,
  PyTree,
  Upload,
)

#: Fragments of names, one of which a personal parameter's name contains; or a
#: function: name -> whether it is personal.
Personal = Sequence[str] | Callable[[str], bool]


class Parts(NamedTuple):
  """split: params -> (shared, personal);  join: (shared, personal) -> params.

  any_personal: whether any parameter is personal.
  """

  split: Callable[[Params], tuple[PyTree, PyTree]]
  join: Callable[[PyTree, PyTree], Params]
  any_personal: bool


def by_name(
  model: Model, personal: Personal, *, none_ok: bool = False
) -> Parts:
  """Splits a model's parameters into what is shared and what is personal.

  Args:
    model: the network.
    personal: fragments of names, `()` for none; or a function of a name.
    none_ok: lets a function choose nothing.

  Returns:
    `Parts`.

  Raises:
    UserError: a fragment is in no name, a function chooses nothing, or
      everything is personal, so that nothing is left to share.
  """
  leaves = jax.tree.leaves_with_path(
    jax.eval_shape(model.init, jax.random.key(0))
  )
  names = [_name(path) for path, _ in leaves]
  if callable(personal):
    chosen = {name for name in names if personal(name)}
    if not (chosen or none_ok):
      raise UserError(
        f"personal chooses none of the parameters {', '.join(names)}: choose "
        "some, or give personal=() to share them all"
      )
  else:
    fragments = (personal,) if isinstance(personal, str) else tuple(personal)
    for fragment in fragments:
      if not any(fragment in name for name in names):
        raise unknown("personal parameter", fragment, names)
    chosen = {n for n in names if any(part in n for part in fragments)}
  if len(chosen) == len(names):
    raise UserError(
      f"personal chooses every parameter ({', '.join(names)}) and leaves "
      "nothing to share: choose fewer, or take local_only"
    )

  def pick(params, mine):
    return jax.tree.map_with_path(
      lambda path, leaf: leaf if (_name(path) in chosen) is mine else None,
      params,
    )

  def join(shared, own):
    return jax.tree.map(
      lambda s, p: p if s is None else s,
      shared,
      own,
      is_leaf=lambda leaf: leaf is None,
    )

  return Parts(lambda p: (pick(p, False), pick(p, True)), join, bool(chosen))


class PartlySharedState(NamedTuple):
  """shared: the trained common part;  start: where personal parts start."""

  shared: PyTree
  start: PyTree


class Learnt(NamedTuple):
  """Both parts after a client's training, and its mean loss f32[]."""

  shared: PyTree
  personal: PyTree
  loss: Array


def partly_shared(
  model: Model,
  parts: Parts,
  learn: Callable[[PyTree, PyTree, ClientData, Key], Learnt],
  local_steps: Callable[[Array, Array], Array],
) -> Algorithm:
  """Averages the shared part as FedAvg does; clients keep the personal part.

  Args:
    model: the network.
    parts: what is shared.
    learn: (shared, personal, data, key) -> `Learnt`, a client's training.
    local_steps: as in `Algorithm`.

  Returns:
    An `Algorithm`; metrics: loss.  Its global model is the shared part with the
    personal part's start, which is never trained.
  """

  def client(message, kept, data, key):
    seed, shared = message
    learnt = learn(shared, _memory.recall(kept, seed.tree), data, key)
    return Upload(
      optax.tree.sub(learnt.shared, shared),
      data.count.astype(jnp.float32),
      _memory.remember(kept, learnt.personal, data),
      {"loss": learnt.loss},
    )

  def server(state, change):
    return state._replace(shared=optax.tree.add(state.shared, change))

  def predict(state, kept, client_id):
    del client_id
    return parts.join(state.shared, _memory.recall(kept, state.start))

  return Algorithm(
    init=lambda key: PartlySharedState(*parts.split(model.init(key))),
    downlink=lambda state, client_id: (
      wire.Known(state.start, setup_bytes=8),
      state.shared,
    ),
    client=client,
    reducer=reduce.weighted_mean(),
    server=server,
    global_params=lambda state: parts.join(state.shared, state.start),
    local_steps=local_steps,
    init_client=lambda key: _memory.nothing(parts.split(model.init(key))[1]),
    predict=predict,
  )


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
