"""Gradient inversion: data whose local training explains an update.

This is a data-reconstruction attack.  Whoever knows the model that a client
started from, the client's program and its update can look for inputs and labels
that give the same update, and what it finds resembles the client's examples
(with few of them, it is them).  `_stale_inversion` uses it on purpose; see
docs/staleness.md for what that costs and for what stops it.

The program must be the client's own: E full-batch steps of plain SGD on the
mean cross-entropy.  With mini-batches, momentum or noise the server cannot
repeat what the client did, and the search explains something else.

Departures from the released code (github.com/pittisl/
FL-with-intertwined-heterogeneity): its box of allowed pixels has the mean and
standard deviation of other data than the clients'; here the box is an argument
in the clients' own units.  Its search minimises a loss that the clients do not
have (BCE of log-softmax, no dropout); here both sides run one loss.  Its 40,000
iterations are an argument.

References:
  Unlimited staleness: arXiv:2309.13536 (AAAI 2025), the objective and the
  restriction to large entries.
  Geiping et al.: Inverting Gradients, NeurIPS 2020, arXiv:2003.14053, Adam on
  signed gradients with a decaying step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_het.core import local
from fedjax_het.core.errors import UserError
from fedjax_het.core.types import Array, Key, Model, Params


class Synthetic(NamedTuple):
  """D_rec: examples with soft labels.

  x: f32[S, ...], inputs as the model takes them.
  logits: f32[S, K]; the labels are softmax(logits).
  """

  x: Array
  logits: Array


# (w, D_rec, steps i32[]) -> w after that many steps of local training
Program = Callable[[Params, Synthetic, Array], Params]


class Search(NamedTuple):
  """How D_rec is sought.

  input_shape, num_classes: of one example, and K.
  box: (lowest, highest) value of an input, in the units that clients train on:
    for pixels in [0, 1] normalised by mean m and deviation s, (-m / s,
    (1 - m) / s).
  size: S, rows of D_rec.
  iterations: of Adam.
  step: Adam's first step size, a tenth of it after 3/8, 5/8 and 7/8 of the
    iterations; f32[] may be traced.
  label_step: of the label logits, in units of `step`: they have further to go
    than an input in its box.
  signed: inputs follow the sign of their gradient (labels never do).
  share: of the coordinates, those where the update is largest, that the
    objective looks at; 1: all.
  """

  input_shape: tuple[int, ...]
  num_classes: int
  box: tuple[float, float]
  size: int = 64
  iterations: int = 300
  step: Array | float = 0.1
  label_step: float = 3.0
  signed: bool = True
  share: float = 1.0


def check_search(search: Search) -> None:
  """Refuses numbers that make no sense.

  Raises:
    UserError: says which.
  """
  low, high = search.box
  if not low < high:
    raise UserError(
      f"box=({low}, {high}) holds nothing: give (lowest, highest) in the units "
      "that the clients train on"
    )
  for name in ("size", "iterations", "num_classes"):
    if getattr(search, name) < 1:
      raise UserError(f"{name} must be >= 1, got {getattr(search, name)}")
  if not 0 < search.share <= 1:
    raise UserError(
      f"share={search.share}: give the share of coordinates to fit, above 0 "
      "and at most 1"
    )


def full_batch_sgd(
  model: Model, *, rate: Array | float, epochs: int
) -> Program:
  """The client's program with soft labels, differentiable in all arguments.

  w <- w - rate grad mean_s CE(softmax(logits_s), f(w, x_s)), `steps` times and
  at most E times; every row counts.

  Args:
    model: the network.
    rate: of SGD.
    epochs: E.
  """

  def loss(params, data):
    each = optax.softmax_cross_entropy(
      model.apply(params, data.x), jax.nn.softmax(data.logits)
    )
    return jnp.mean(each)

  def program(params, data, steps):
    def step(params, t):
      grads = jax.grad(loss)(params, data)
      # a scan of fixed length with steps left out: a while loop cannot be
      # differentiated backwards
      moved = jax.tree.map(
        lambda w, g: jnp.where(t < steps, w - rate * g, w), params, grads
      )
      return moved, None

    return jax.lax.scan(step, params, jnp.arange(epochs, dtype=jnp.int32))[0]

  return program


def draw(search: Search, key: Key) -> Synthetic:
  """A random start: inputs N(0, 1), cut to the box; labels nearly uniform.

  From logits of N(0, 1) the labels are soon as good as hard, at random, and
  there they stay: their gradient is gone.
  """
  x_key, label_key = jax.random.split(key)
  x = jax.random.normal(x_key, (search.size, *search.input_shape))
  logits = jax.random.normal(label_key, (search.size, search.num_classes))
  logits = 0.1 * logits
  return Synthetic(jnp.clip(x, *search.box), logits)


def invert(
  program: Program,
  search: Search,
  base: Params,
  delta: Params,
  steps: Array,
  start: Synthetic,
) -> tuple[Synthetic, Array]:
  """Seeks D_rec with |L(w_old; D_rec) - w_old - Delta|_1 small.

  Minimises the L1 distance over all tensors, divided by |Delta|_1, by Adam from
  `start`.  Pure; vmap it over clients.

  Args:
    program: L, the client's local training.
    search: how.
    base: w_old, where the client started.
    delta: Delta, what it changed.
    steps: i32[], how many local steps it did.
    start: the first guess, e.g. `draw(search, key)` or the last result for
      this client.

  Returns:
    (D_rec, the relative error f32[] of its update over all coordinates; 0 for
    an update of zero).
  """
  chosen = _largest(delta, search.share)

  def distance(data, weights):
    end = program(base, data, steps)
    missed = jax.tree.map(
      lambda e, b, d, w: jnp.sum(w * jnp.abs(e - b - d)),
      end,
      base,
      delta,
      weights,
    )
    size = jax.tree.map(lambda d, w: jnp.sum(w * jnp.abs(d)), delta, weights)
    return _safe_ratio(_total(missed), _total(size))

  optimizer = optax.chain(
    optax.adam(
      lambda count: search.step * 0.1 ** _decays(count, search.iterations)
    ),
    optax.stateless(
      lambda move, _: move._replace(logits=search.label_step * move.logits)
    ),
  )

  def improve(carry, _):
    data, moments = carry
    grads = jax.grad(distance)(data, chosen)
    if search.signed:
      grads = grads._replace(x=jnp.sign(grads.x))
    data, moments = local.descend(optimizer, grads, moments, data)
    return (data._replace(x=jnp.clip(data.x, *search.box)), moments), None

  (found, _), _ = jax.lax.scan(
    improve, (start, optimizer.init(start)), length=search.iterations
  )
  everything = jax.tree.map(jnp.ones_like, delta)
  return found, distance(found, everything)


def relative_error(estimate: Params, true: Params) -> Array:
  """f32[]: |estimate - true|_1 / |true|_1 over all tensors; 0 / 0 is 0."""
  missed = jax.tree.map(lambda a, b: jnp.sum(jnp.abs(a - b)), estimate, true)
  size = jax.tree.map(lambda b: jnp.sum(jnp.abs(b)), true)
  return _safe_ratio(_total(missed), _total(size))


def _largest(delta: Params, share: float) -> Params:
  """1 where |Delta| is among the largest `share` of all tensors, else 0."""
  if share == 1:
    return jax.tree.map(jnp.ones_like, delta)
  sizes = jnp.concatenate([jnp.abs(d).ravel() for d in jax.tree.leaves(delta)])
  kept = max(round(share * sizes.size), 1)
  threshold = jnp.sort(sizes)[sizes.size - kept]
  return jax.tree.map(
    lambda d: (jnp.abs(d) >= threshold).astype(d.dtype), delta
  )


def _decays(count: Array, iterations: int) -> Array:
  """i32[]: how often the step was cut to a tenth after `count` iterations."""
  marks = [-(-iterations * eighths // 8) for eighths in (3, 5, 7)]
  return sum((count >= mark).astype(jnp.int32) for mark in marks)


def _total(tree: Params) -> Array:
  return sum(jax.tree.leaves(tree))


def _safe_ratio(a: Array, b: Array) -> Array:
  return jnp.where(b > 0, a / jnp.where(b > 0, b, jnp.ones_like(b)), 0)
