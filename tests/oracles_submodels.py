"""Sub-model methods as float64 NumPy loops, written from the papers.

As in `oracles_global`: [first, second], full batches, cohorts.  Narrow networks
are really cut out, blocks are really listed: nothing here is a mask.
"""

import itertools

import numpy as np
from oracles import client_arrays, loss_and_grad
from oracles_global import axpy


def scaled_gradient(first, second, x, y, scale, present):
  """The gradient of a network whose hidden layer is divided by `scale`.

  present: 0/1 of each class; the logits of the others are 0.
  """
  z = x @ first / scale
  h = np.maximum(z, 0)
  logits = (h @ second) * present
  p = np.exp(logits - logits.max(axis=1, keepdims=True))
  p /= p.sum(axis=1, keepdims=True)
  p[np.arange(len(y)), y] -= 1
  delta = p / len(y) * present
  back = (delta @ second.T) * (z > 0)
  return x.T @ back / scale, h.T @ delta


def hetero_fl(
  w,
  data,
  cohorts,
  *,
  rate,
  epochs,
  rates,
  rolling=False,
  scaler=True,
  masked_loss=True,
  by_examples=False,
):
  """Diao et al., Algorithm 1; `rolling`: Alam et al., equation 1.

  Returns:
    (w, {client: parameters received}, {client: parameters sent}), of the last
    round.
  """
  first, second = w
  hidden, classes = second.shape
  for t, cohort in enumerate(cohorts):
    total = [np.zeros_like(first), np.zeros_like(second)]
    weight = [np.zeros_like(first), np.zeros_like(second)]
    down, up = {}, {}
    for k in cohort:
      r = rates[k % len(rates)]
      width = int(np.ceil(round(r * hidden, 6)))
      begin = t % hidden if rolling else 0
      units = [(begin + i) % hidden for i in range(width)]
      x, y = client_arrays(data, k)
      present = np.isin(np.arange(classes), y) if masked_loss else np.ones(3)
      a, b = first[:, units], second[units]
      for _ in range(epochs):
        da, db = scaled_gradient(a, b, x, y, r if scaler else 1.0, present)
        a, b = a - rate * da, b - rate * db
      n = len(y) if by_examples else 1
      rows = np.flatnonzero(present)
      total[0][:, units] += n * a
      weight[0][:, units] += n
      total[1][np.ix_(units, rows)] += n * b[:, rows]
      weight[1][np.ix_(units, rows)] += n
      down[k] = first.shape[0] * width + width * classes
      up[k] = first.shape[0] * width + width * len(rows)
    first, second = (
      np.where(c > 0, s / np.where(c > 0, c, 1), old)
      for s, c, old in zip(total, weight, (first, second), strict=True)
    )
  return [first, second], down, up


def split_mix(bases, data, cohorts, *, rate, epochs, budgets):
  """Hong et al., Algorithm 1, bases in turn.

  Args:
    bases: list of narrow networks [first, second].
    budgets: bases that client k may train, budgets[k % len(budgets)].
  """
  bases = [list(base) for base in bases]
  for t, cohort in enumerate(cohorts):
    sent = [[] for _ in bases]
    for k in cohort:
      x, y = client_arrays(data, k)
      for i in range(budgets[k % len(budgets)]):
        mine = (k + t + i) % len(bases)
        net = bases[mine]
        for _ in range(epochs):
          net = axpy(-rate, loss_and_grad(*net, x, y)[1], net)
        sent[mine].append(net)
    for i, nets in enumerate(sent):
      if nets:
        bases[i] = [
          np.mean(leaves, axis=0) for leaves in zip(*nets, strict=True)
        ]
  return bases


def block_sizes(size, parts, first_share):
  """Section 7.2: the first block, then parts - 1 equal ones."""
  first = max(1, int(np.floor(first_share * size)))
  rest, out = size - first, [first]
  for i in range(parts - 1):
    out.append(rest // (parts - 1) + (i < rest % (parts - 1)))
  return [n for n in out if n]


def block_ids(shape, parts, first_share, start):
  """The block of each entry of a kernel [in, out], numbered from `start`."""
  sizes = block_sizes(int(np.prod(shape)), parts, first_share)
  flat = np.repeat(np.arange(start, start + len(sizes)), sizes)
  return flat.reshape(shape[::-1]).T, sizes


def greedy(value, weight, first, capacity):
  """First blocks, then by value per weight whatever still fits."""
  used, room = list(first), capacity - sum(np.array(weight)[first])
  order = sorted(
    (block for block in range(len(value)) if not first[block]),
    key=lambda block: (-value[block] / weight[block], block),
  )
  for block in order:
    if weight[block] <= room:
      used[block], room = True, room - weight[block]
  return np.array(used)


def best_subset(value, weight, first, capacity):
  """The largest value of any choice that fits, over all subsets."""
  best = -np.inf
  for chosen in itertools.product([False, True], repeat=len(value)):
    chosen = np.array(chosen)
    if (chosen | ~first).all() and np.dot(weight, chosen) <= capacity:
      best = max(best, np.dot(value, chosen))
  return best


def soft(v):
  return np.exp(v) / np.exp(v).sum()


def switch_norm(phi, z, mean, var):
  """z [B, pixels, C]; mean, var [C] of the batch norm."""
  parts = [(z.mean((1, 2)), z.var((1, 2)))]
  parts = [(m[:, None, None], v[:, None, None]) for m, v in parts]
  if z.shape[1] > 1:
    parts.insert(0, (z.mean(1)[:, None], z.var(1)[:, None]))
  parts.append((mean, var))
  m = sum(s * p[0] for s, p in zip(soft(phi["mean"]), parts, strict=True))
  v = sum(s * p[1] for s, p in zip(soft(phi["var"]), parts, strict=True))
  return (z - m) / np.sqrt(v + 1e-5) * phi["scale"] + phi["shift"]


def gate(phi, z, of=None):
  """Scores [B, paths, L] of inputs z [B, pixels, C], norms over `of` or z."""
  of = z if of is None else of
  mean, var = of.mean((0, 1)), of.var((0, 1))

  def logits(z):
    z = switch_norm(phi["norm"], z, mean, var).reshape(len(z), -1)
    paths = phi["linear"].shape[1]
    return np.stack([z @ phi["linear"][:, p] for p in range(paths)], axis=1)

  center, spread = logits(of).mean(0), logits(of).var(0)
  normed = (logits(z) - center) / np.sqrt(spread + 1e-5)
  return 1 / (1 + np.exp(-(phi["scale"] * normed + phi["shift"])))


class Gated:
  """One client's computation for [first, second] and inputs [B, features].

  Args:
    shapes: of the two kernels;  parts, density: of the gate.
  """

  def __init__(self, shapes, parts, density):
    share, start, self.ids, weight, first = (
      min(1 / parts, density),
      0,
      [],
      [],
      [],
    )
    for shape in shapes:
      ids, sizes = block_ids(shape, parts, share, start)
      self.ids.append(ids)
      weight += sizes
      first += [i == 0 for i in range(len(sizes))]
      start += len(sizes)
    self.weight, self.first = np.array(weight), np.array(first)
    self.capacity = int(np.floor(density * self.weight.sum()))

  def choose(self, scores):
    return greedy(scores[-1], self.weight, self.first, self.capacity)

  def apply(self, theta, factors):
    return [w * factors[ids] for w, ids in zip(theta, self.ids, strict=True)]

  def step(self, theta, phi, x, y):
    """(gradient of theta, gradient of phi, blocks used) of one full batch."""
    z = x[:, None]
    scores = gate(phi, z).mean(0)
    used, fixed = self.choose(scores), scores[-1]

    def through(phi):  # the straight-through function: I + G - its value
      scores = gate(phi, z).mean(0)
      return scores[0] * (used + scores[-1] - fixed)

    factors = through(phi)
    _, d_net = loss_and_grad(*self.apply(theta, factors), x, y)
    d_theta = self.apply(d_net, factors)
    d_factors = np.zeros(len(self.weight))
    for g, w, ids in zip(d_net, theta, self.ids, strict=True):
      np.add.at(d_factors, ids, g * w)
    return d_theta, _difference(lambda p: d_factors @ through(p), phi), used


def _difference(function, tree, eps=1e-5):
  """Central differences of a scalar function of a nested dict of arrays."""
  if isinstance(tree, dict):
    return {
      name: _difference(
        lambda leaf, name=name: function({**tree, name: leaf}), tree[name], eps
      )
      for name in tree
    }
  slope = np.zeros_like(tree)
  for place in np.ndindex(tree.shape):
    step = np.zeros_like(tree)
    step[place] = eps
    slope[place] = (function(tree + step) - function(tree - step)) / (2 * eps)
  return slope


def descend(tree, grads, rate):
  if isinstance(tree, dict):
    return {name: descend(tree[name], grads[name], rate) for name in tree}
  return tree - rate * grads


def pfed_gate(
  w, phi, data, cohorts, *, gated, rate, gate_rate, epochs, counted
):
  """Chen et al., Algorithm 1 and appendix A.

  Returns:
    (w, {client: its gate}, {client: blocks sent in its last round}).
  """
  own, sent = {}, {}
  for cohort in cohorts:
    total = [np.zeros_like(a) for a in w]
    weight = [np.zeros_like(a) for a in w]
    for k in cohort:
      x, y = client_arrays(data, k)
      theta, mine = w, own.get(k, phi)
      used = np.zeros(len(gated.weight), bool)
      for _ in range(epochs):
        d_theta, d_phi, now = gated.step(theta, mine, x, y)
        theta = axpy(-rate, d_theta, theta)
        mine = descend(mine, d_phi, gate_rate)
        used |= now
      own[k], sent[k] = mine, used
      for i, ids in enumerate(gated.ids):
        holds = used[ids] if counted else np.ones_like(w[i])
        total[i] += len(y) * holds * theta[i]
        weight[i] += len(y) * holds
    w = [
      np.where(c > 0, s / np.where(c > 0, c, 1), old)
      for s, c, old in zip(total, weight, w, strict=True)
    ]
  return w, own, sent
