"""Pieces that the transformations share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Algorithm, Array, Key, PyTree


def around(algorithm: Algorithm, **functions) -> Algorithm:
  """`algorithm` for a state that keeps the wrapped one's in its field `server`.

  Args:
    algorithm: the method that is wrapped.
    **functions: fields of `Algorithm` that are new.
  """
  inner = algorithm.predict
  return algorithm._replace(
    global_params=lambda state: algorithm.global_params(state.server),
    predict=inner
    and (lambda state, kept, client: inner(state.server, kept, client)),
    **functions,
  )


class Clipped(NamedTuple):
  """message: of norm <= clip;  norm: f32[], what it was before."""

  message: PyTree
  norm: Array


def clipped(message: PyTree, clip: Array | float) -> Clipped:
  """Scales a message down to an L2 norm of `clip`, all leaves together.

  Raises:
    UserError: a leaf is not a float array.
  """
  leaves = jax.tree.leaves(message)
  for leaf in leaves:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      raise UserError(
        f"only float messages have a norm to clip, got a leaf of {leaf.dtype}: "
        "take an algorithm that sends floats, e.g. fed_avg"
      )
  square = sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves)
  norm = jnp.sqrt(square)
  factor = jnp.minimum(1.0, clip / jnp.where(norm > 0, norm, 1.0))
  message = jax.tree.map(lambda x: x * factor.astype(x.dtype), message)
  return Clipped(message, norm)


def noisy(key: Key, tree: PyTree, std: Array | float) -> PyTree:
  """`tree` plus N(0, std^2) in every coordinate."""
  leaves, treedef = jax.tree.flatten(tree)
  std = jnp.float32(std)
  return jax.tree.unflatten(
    treedef,
    [
      x
      + std.astype(x.dtype)
      * jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
      for i, x in enumerate(leaves)
    ],
  )


def check_noise(clip: Any, noise_multiplier: Any, cohort_size: int = 1) -> None:
  """Refuses numbers that make no sense; traced values are not looked at.

  Raises:
    UserError: says which.
  """
  for name, value in (("clip", clip), ("noise_multiplier", noise_multiplier)):
    if isinstance(value, (int, float)) and not value >= 0:
      raise UserError(f"{name} must not be negative, got {value}")
  if clip == 0:
    raise UserError("clip=0 sends nothing at all: give a norm above 0")
  if clip == float("inf") and noise_multiplier != 0:
    raise UserError(
      "noise is measured in clip norms: give a finite clip, or "
      "noise_multiplier=0 for no privacy"
    )
  if cohort_size < 1:
    raise UserError(f"cohort_size must be >= 1, got {cohort_size}")


def noise_std(clip: Array | float, noise_multiplier: Array | float, size: int):
  """Of the mean over a planned cohort; 0 without noise, even if not clipped."""
  if isinstance(noise_multiplier, (int, float)) and noise_multiplier == 0:
    return 0.0
  return noise_multiplier * clip / size
