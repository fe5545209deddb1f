"""Federated LoRA as float64 NumPy loops, written from FLASC's description.

The network is `tiny.mlp` with an adapter in its first matrix, W + s A B; its
second matrix, the head, is trained whole.  Batches are full.
"""

import numpy as np
from oracles import client_arrays, loss_and_grad

PARTS = ("a", "b", "head")


def largest(values, count):
  """Flags the `count` largest |values| (no ties where it matters)."""
  flags = np.zeros(values.size, bool)
  flags[np.argsort(-np.abs(values).ravel(), kind="stable")[:count]] = True
  return flags.reshape(values.shape)


def top_k(parts, density, scope):
  """A mask for each part: a share of each, or of all together."""
  if scope == "matrix":
    return {
      n: largest(p, max(1, round(density * p.size))) for n, p in parts.items()
    }
  flat = np.concatenate([parts[n].ravel() for n in PARTS])
  flags = largest(flat, round(density * flat.size))
  cuts = np.cumsum([parts[n].size for n in PARTS])[:-1]
  split = np.split(flags, cuts)
  return {
    n: part.reshape(parts[n].shape)
    for n, part in zip(PARTS, split, strict=True)
  }


def descend(base, parts, scale, x, y, rate, steps):
  for _ in range(steps):
    first = base + scale * parts["a"] @ parts["b"]
    _, (g, g_head) = loss_and_grad(first, parts["head"], x, y)
    grads = {
      "a": scale * g @ parts["b"].T,
      "b": scale * parts["a"].T @ g,
      "head": g_head,
    }
    parts = {n: parts[n] - rate * grads[n] for n in PARTS}
  return parts


def flasc(
  base,
  parts,
  data,
  cohorts,
  *,
  scale,
  rate,
  epochs,
  down,
  up,
  scope,
  server="sgd",
  by_examples=False,
):
  """FLASC; server: "sgd" (rate 1) or "adam" (0.01, 0.9, 0.999, 1e-8).

  Returns:
    parts after a round for each of `cohorts`.
  """
  counts = np.asarray(data.train.count, np.float64)
  first = {n: np.zeros_like(p) for n, p in parts.items()}
  second = {n: np.zeros_like(p) for n, p in parts.items()}
  for t, ids in enumerate(cohorts):
    mask = top_k(parts, down, scope)
    sent = {n: np.where(mask[n], parts[n], 0) for n in PARTS}
    weight = counts[ids] if by_examples else np.ones(len(ids))
    total = {n: np.zeros_like(p) for n, p in parts.items()}
    for k, w in zip(ids, weight / weight.sum(), strict=True):
      mine = descend(base, sent, scale, *client_arrays(data, k), rate, epochs)
      delta = {n: sent[n] - mine[n] for n in PARTS}
      kept = top_k(delta, up, scope)
      for n in PARTS:
        total[n] += w * np.where(kept[n], delta[n], 0)  # missing is 0
    for n in PARTS:
      if server == "sgd":
        parts[n] = parts[n] - total[n]
        continue
      first[n] = 0.9 * first[n] + 0.1 * total[n]
      second[n] = 0.999 * second[n] + 0.001 * total[n] ** 2
      m = first[n] / (1 - 0.9 ** (t + 1))
      v = second[n] / (1 - 0.999 ** (t + 1))
      parts[n] = parts[n] - 0.01 * m / (np.sqrt(v) + 1e-8)
  return parts
