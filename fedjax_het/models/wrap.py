"""Any flax module as a `Model`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key, Model, Params


def from_flax(
  module: nn.Module | nnx.Module | Callable[[nnx.Rngs], nnx.Module],
  input_shape: tuple[int, ...],
) -> Model:
  """Wraps a flax module as two pure functions.

  Args:
    module: a linen module; an nnx module, whose own parameters `init` returns
      whatever the key; or a function `rngs -> nnx module`, called by `init`
      with `nnx.Rngs(key)`.  Parameters are its only state.
    input_shape: shape of one example, without the batch axis.

  Returns:
    A `Model`.  params are linen's "params" tree, or for nnx a flat dict
    {"layer/kernel": array}.  apply raises a `UserError` for any input but
    [B, *input_shape].

  Raises:
    UserError: the module has other state (batch statistics, random streams),
      or it does not fit the input shape.

  Example:
    >>> import flax.linen as nn
    >>> model = from_flax(nn.Dense(3), (2,))
    >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 2))).shape
    (5, 3)
  """
  input_shape = tuple(input_shape)
  if not input_shape or min(input_shape) < 1:
    raise UserError(f"input_shape {input_shape}: give positive sizes")
  if isinstance(module, nn.Module):
    model = _from_linen(module, input_shape)
  else:
    model = _from_nnx(module)

  def apply(params: Params, x: Array) -> Array:
    if x.shape[1:] != input_shape:
      sizes = ", ".join(map(str, input_shape))
      raise UserError(
        f"this model takes x [B, {sizes}], got {list(x.shape)}: reshape the "
        "examples or build the model for their shape"
      )
    return model.apply(params, x)

  # now, not in the first round: a shape error belongs to the caller's line
  params = jax.eval_shape(model.init, jax.random.key(0))
  jax.eval_shape(
    apply, params, jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
  )
  return Model(model.init, apply)


def _from_linen(module: nn.Module, input_shape: tuple[int, ...]) -> Model:
  def init(key: Key) -> Params:
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    variables = module.lazy_init(key, example)
    _check_state(sorted(set(variables) - {"params"}))
    return variables.get("params", {})

  def apply(params: Params, x: Array) -> Array:
    return module.apply({"params": params}, x)

  return Model(init, apply)


def _from_nnx(
  module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
) -> Model:
  given = isinstance(module, nnx.Module)

  def split(key: Key):
    graph, params, rest = nnx.split(
      module if given else module(nnx.Rngs(key)), nnx.Param, ...
    )
    kinds = {type(leaf).__name__ for _, leaf in nnx.to_flat_state(rest)}
    _check_state(sorted(kinds))
    return graph, params

  def init(key: Key) -> Params:
    paths, leaves = zip(*nnx.to_flat_state(split(key)[1]), strict=True)
    names = ["/".join(map(str, path)) for path in paths]
    return {
      name: leaf.get_value() for name, leaf in zip(names, leaves, strict=True)
    }

  graph, abstract = nnx.eval_shape(lambda: split(jax.random.key(0)))

  def apply(params: Params, x: Array) -> Array:
    flat = [
      (path, leaf.replace(params["/".join(map(str, path))]))
      for path, leaf in nnx.to_flat_state(abstract)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))(x)

  return Model(init, apply)


def _check_state(kinds: list[str]) -> None:
  if kinds:
    raise UserError(
      f"this module keeps state other than parameters ({', '.join(kinds)}): "
      "a Model is two pure functions; use a norm without running statistics "
      "(GroupNorm, LayerNorm or models.resnet's norm='static') and no dropout"
    )
