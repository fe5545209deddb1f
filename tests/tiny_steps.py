"""A small model, documents, plans by hand, and their step on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.models.transformer import Shape, transformer
from fedjax_het.seqpar.types import Plan, Task

# one key-value head: repeated even for 2 devices; 2 heads: rings beyond 2
SHAPE = Shape(
  vocabulary=23,
  width=8,
  layers=1,
  heads=2,
  kv_heads=1,
  head_width=4,
  hidden=12,
  mlp="gelu",
)
MODEL = transformer(SHAPE)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)  # its first trace is the gradient
LENGTHS = 101, 60, 44, 37, 30, 25, 22, 18, 15, 12, 9, 7, 5, 1
FEW = 21, 16, 9, 5, 7


def documents(lengths=LENGTHS):
  """Texts, and the weights of their tokens as targets (a fifth is 0)."""
  rng = np.random.default_rng(0)
  texts = [rng.integers(0, SHAPE.vocabulary, n) for n in lengths]
  weights = [
    (rng.random(n) * (rng.random(n) > 0.2)).astype(np.float32) for n in lengths
  ]
  return texts, weights


def parameters():
  like = jax.eval_shape(MODEL.init, jax.random.key(0))
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), like
  )


def plan(num_devices, *tasks, lengths=LENGTHS, barrier=False):
  none = np.zeros(0)
  return Plan(
    lengths=np.asarray(lengths),
    num_devices=num_devices,
    tasks=tuple(Task(*task) for task in tasks),
    barrier=barrier,
    seconds=0.0,
    task_seconds=none,
    device_seconds=none,
    device_memory=none,
    lower_bound=0.0,
    split_bound=0.0,
    planner="hand",
    solve_seconds=0.0,
  )


def one_device(params, texts, weights):
  """(loss, gradient): every document a row of its own, dense attention."""
  longest = max(map(len, texts))
  x = np.zeros((len(texts), longest), np.int32)
  y, mask = np.zeros_like(x), np.zeros(x.shape, np.float32)
  for i, (text, weight) in enumerate(zip(texts, weights, strict=True)):
    x[i, : len(text)] = text
    y[i, : len(text) - 1] = text[1:]
    mask[i, : len(text) - 1] = weight[1:]

  def loss(params):
    logits = MODEL.apply(params, x)
    each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.sum(each * mask) / mask.sum()

  loss, grads = jax.jit(jax.value_and_grad(loss))(params)
  return float(loss), flat(grads)


def flat(tree):
  """All numbers in float64 on the host: XLA's max drops NaN."""
  leaves = [
    np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)
  ]
  return np.concatenate(leaves)


def check(state, loss, want):
  """Loss and gradient (the first trace of momentum) are those of `want`."""
  want_loss, want_grads = want
  got = flat(state.opt_state[0].trace)
  assert np.isfinite(got).all() and np.isfinite(float(loss))
  error = np.linalg.norm(got - want_grads) / np.linalg.norm(want_grads)
  assert error < 1e-5, error
  assert abs(float(loss) / want_loss - 1) < 1e-6, (float(loss), want_loss)
