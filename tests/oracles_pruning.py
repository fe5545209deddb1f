"""Methods with moving masks as float64 NumPy loops, written from the papers.

The network is `tiny.mlp`, [first, second]; batches are full; everybody takes
part in every round.
"""

import numpy as np
from oracles import client_arrays, loss_and_grad


def lowest(values, among, count):
  """Flags the `count` smallest values, the lower position first at ties."""
  values = np.where(among, values, np.inf).ravel()
  flags = np.zeros(values.size, bool)
  flags[np.argsort(values, kind="stable")[:count]] = True
  return flags.reshape(among.shape)


def move(w, mask, g, count):
  """Prunes and grows `count` weights of one layer: (w, mask)."""
  count = min(count, mask.sum(), (~mask).sum())
  gone = lowest(np.abs(w), mask, count)
  come = lowest(-np.abs(g), ~mask, count)
  return np.where(mask & ~gone, w, 0), (mask & ~gone) | come


def how_many(mask, done, *, share, until):
  """The cosine schedule after `done` rounds."""
  return round(share / 2 * (1 + np.cos(np.pi * done / until)) * mask.sum())


def descend(params, masks, x, y, rate, steps):
  for _ in range(steps):
    _, grads = loss_and_grad(*params, x, y)
    params = [
      w - rate * g * m for w, g, m in zip(params, grads, masks, strict=True)
    ]
  return params


def fed_tiny(
  params, masks, data, *, rate, epochs, rounds, every, until, share, blocks
):
  """Progressive pruning; blocks: layers that adjustment 0, 1, ... may move.

  Returns:
    (params, masks, how many gradients a client sent in each round).
  """
  counts = np.asarray(data.train.count, np.float64)
  sent = []
  for t in range(rounds):
    done = t + 1
    now = done % every == 0 and done < until
    block = blocks[(done // every - 1) % len(blocks)] if now else ()
    total = [np.zeros_like(p) for p in params]
    gradient = [np.zeros_like(p) for p in params]
    moves = [
      how_many(m, done, share=share, until=until) if i in block else 0
      for i, m in enumerate(masks)
    ]
    for k, n in enumerate(counts):
      x, y = client_arrays(data, k)
      local = descend(params, masks, x, y, rate, epochs)
      _, grads = loss_and_grad(*local, x, y)
      for i in range(2):
        total[i] += n / counts.sum() * local[i]
        chosen = lowest(-np.abs(grads[i]), ~masks[i], moves[i])
        gradient[i] += n / counts.sum() * np.where(chosen, grads[i], 0)
    params = total
    for i in block:
      params[i], masks[i] = move(params[i], masks[i], gradient[i], moves[i])
    sent.append(sum(moves))
  return params, masks, sent


def fed_dst(
  params, masks, data, *, rate, epochs, after, rounds, every, until, share
):
  """Bibikar et al.: clients move masks, the server averages over holders."""
  counts = np.asarray(data.train.count, np.float64)
  for t in range(rounds):
    done = t + 1
    now = done % every == 0 and done < until
    total = [np.zeros_like(p) for p in params]
    weight = [np.zeros_like(p) for p in params]
    for k, n in enumerate(counts):
      x, y = client_arrays(data, k)
      local, mine = descend(params, masks, x, y, rate, epochs), list(masks)
      if now:
        _, grads = loss_and_grad(*local, x, y)
        for i in range(2):
          count = how_many(mine[i], done, share=share, until=until)
          local[i], mine[i] = move(local[i], mine[i], grads[i], count)
      local = descend(local, mine, x, y, rate, after)
      for i in range(2):
        total[i] += n * mine[i] * local[i]
        weight[i] += n * mine[i]
    for i in range(2):
      held = weight[i] > 0
      params[i] = np.where(held, total[i] / np.where(held, weight[i], 1), 0)
      if now:
        masks[i] = lowest(-np.abs(params[i]), held, masks[i].sum())
        params[i] = params[i] * masks[i]
  return params, masks


def prune_fl(
  params, masks, data, *, rate, epochs, rounds, every, share, costs, fixed
):
  """Jiang et al.: weights join one by one while it pays."""
  counts = np.asarray(data.train.count, np.float64)
  for t in range(rounds):
    total = [np.zeros_like(p) for p in params]
    squares = [np.zeros_like(p) for p in params]
    for k, n in enumerate(counts):
      x, y = client_arrays(data, k)
      local = descend(params, masks, x, y, rate, epochs)
      _, grads = loss_and_grad(*local, x, y)
      for i in range(2):
        total[i] += n / counts.sum() * local[i]
        squares[i] += n / counts.sum() * grads[i] ** 2
    params = total
    if (t + 1) % every == 0:
      masks = _grow_while_it_pays(params, masks, squares, share, costs, fixed)
      params = [w * m for w, m in zip(params, masks, strict=True)]
  return params, masks


def _grow_while_it_pays(params, masks, squares, share, costs, fixed):
  new = [
    lowest(-np.abs(w), m, m.sum() - int(share * m.sum()))
    for w, m in zip(params, masks, strict=True)
  ]
  gain = sum((s * m).sum() for s, m in zip(squares, new, strict=True))
  time = fixed + sum(c * m.sum() for c, m in zip(costs, new, strict=True))
  waiting = [
    (-squares[i][at] / costs[i], i, at)
    for i in range(2)
    for at in np.ndindex(new[i].shape)
    if not new[i][at]
  ]
  for negative, i, at in sorted(waiting):
    if -negative <= gain / time:
      break
    new[i][at] = True
    gain, time = gain + squares[i][at], time + costs[i]
  return new


def lottery_fl(
  params, data, *, rate, epochs, cohorts, density, share, accuracy
):
  """Li et al.: personal masks, rewinding, means over holders."""
  start = [np.asarray(p, np.float64) for p in params]
  params = [p.copy() for p in start]
  masks = [[np.ones(p.shape, bool) for p in start] for _ in data.train.count]
  least = [max(1, round(density * p.size)) for p in start]
  for cohort in cohorts:
    total = [np.zeros_like(p) for p in params]
    holders = [np.zeros_like(p) for p in params]
    for k in cohort:
      x, y = client_arrays(data, k)
      mine = [p * m for p, m in zip(params, masks[k], strict=True)]
      hits = (np.maximum(x @ mine[0], 0) @ mine[1]).argmax(1) == y
      smaller = [
        lowest(
          -np.abs(w),
          m,
          min(m.sum(), max(low, int(np.rint((1 - share) * m.sum())))),
        )
        for w, m, low in zip(mine, masks[k], least, strict=True)
      ]
      fewer = sum(m.sum() for m in smaller) < sum(m.sum() for m in masks[k])
      if hits.mean() > accuracy and fewer:
        masks[k] = smaller
        mine = [p * m for p, m in zip(start, smaller, strict=True)]
      mine = descend(mine, masks[k], x, y, rate, epochs)
      for i in range(2):
        total[i] += mine[i] * masks[k][i]
        holders[i] += masks[k][i]
    params = [
      np.where(h > 0, t / np.where(h > 0, h, 1), p)
      for t, h, p in zip(total, holders, params, strict=True)
    ]
  return params, masks
