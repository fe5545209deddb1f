"""Federated methods as plain float64 NumPy loops, written from the papers.

They share nothing with the engine but the network (two dense layers, see
`tiny.mlp`) and the data.  Batches are full, so that no shuffling matters.
"""

import numpy as np


def loss_and_grad(first, second, x, y):
  """Mean softmax cross-entropy of relu(x @ first) @ second and its gradient."""
  z = x @ first
  h = np.maximum(z, 0)
  logits = h @ second
  logits = logits - logits.max(axis=1, keepdims=True)
  p = np.exp(logits)
  p /= p.sum(axis=1, keepdims=True)
  loss = -np.log(p[np.arange(len(y)), y]).mean()
  delta = p.copy()
  delta[np.arange(len(y)), y] -= 1
  delta /= len(y)
  back = (delta @ second.T) * (z > 0)
  return loss, (x.T @ back, h.T @ delta)


def client_arrays(data, k):
  """x f64[n, ...], y of client k, as NumPy."""
  rows = np.asarray(data.train.index[k])[: int(data.train.count[k])]
  x = np.asarray(data.examples.x, np.float64)[rows]
  return x, np.asarray(data.examples.y)[rows]


def fed_avg(params, data, *, rate, epochs, rounds, server="sgd", masks=None):
  """McMahan et al., Algorithm 1 (full batches, everybody takes part).

  Args:
    params: [first, second].
    server: "sgd", "momentum" (0.9) or "adam" (0.01, b2 0.99, eps 1e-3) on
      minus the mean change, Reddi et al., Algorithm 2 with bias correction.
    masks: [first, second] of 0/1, or None.

  Returns:
    (params, the weighted mean of the clients' mean losses in each round).
  """
  params = [np.asarray(p, np.float64) for p in params]
  masks = masks or [np.ones_like(p) for p in params]
  m = [np.zeros_like(p) for p in params]
  v = [np.zeros_like(p) for p in params]
  counts = np.asarray(data.train.count, np.float64)
  history = []
  for t in range(1, rounds + 1):
    total = [np.zeros_like(p) for p in params]
    losses = []
    for k, n in enumerate(counts):
      x, y = client_arrays(data, k)
      local, mine = [p.copy() for p in params], []
      for _ in range(epochs):
        loss, grads = loss_and_grad(*local, x, y)
        mine.append(loss)
        local = [
          w - rate * g * keep
          for w, g, keep in zip(local, grads, masks, strict=True)
        ]
      losses.append(np.mean(mine))
      for i, (w, p) in enumerate(zip(local, params, strict=True)):
        total[i] += n / counts.sum() * (w - p)
    history.append(np.average(losses, weights=counts))
    for i, delta in enumerate(total):
      if server == "sgd":
        params[i] = params[i] + delta
      elif server == "momentum":
        m[i] = 0.9 * m[i] + delta
        params[i] = params[i] + m[i]
      elif server == "adam":
        m[i] = 0.9 * m[i] + 0.1 * delta
        v[i] = 0.99 * v[i] + 0.01 * delta**2
        step = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.99**t)) + 1e-3)
        params[i] = params[i] + 0.01 * step
  return params, history


def sign_training(
  weights, masks, data, *, rate, epochs, rounds, anchor, values
):
  """HideNseek's loop: Adam on scores, straight through the sign.

  Args:
    weights: frozen, pruned [first, second];  masks: their 0/1 supports.
    values: (-1, 1) or (0, 1).

  Returns:
    The mean sign of each weight after the last round, 0 where pruned.
  """
  weights = [np.asarray(w, np.float64) for w in weights]
  low, high = values
  counts = np.asarray(data.train.count, np.float64)
  mean = [np.ones_like(w) for w in weights]
  for _ in range(rounds):
    votes = [np.zeros_like(w) for w in weights]
    for k, n in enumerate(counts):
      x, y = client_arrays(data, k)
      s = [anchor * b for b in mean]
      m = [np.zeros_like(w) for w in weights]
      v = [np.zeros_like(w) for w in weights]
      for t in range(1, epochs + 1):
        net = [
          w * np.where(si >= 0, high, low)
          for w, si in zip(weights, s, strict=True)
        ]
        _, grads = loss_and_grad(*net, x, y)
        for i, g in enumerate(grads):
          g = g * weights[i]  # d(w sgn(s)) / ds := w
          m[i] = 0.9 * m[i] + 0.1 * g
          v[i] = 0.999 * v[i] + 0.001 * g**2
          step = m[i] / (1 - 0.9**t) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8)
          s[i] = s[i] - rate * step
      for i, si in enumerate(s):
        votes[i] += n * np.where(si >= 0, 1, -1)  # whole numbers: exact ties
    mean = [v / counts.sum() for v in votes]
  return [b * keep for b, keep in zip(mean, masks, strict=True)]
