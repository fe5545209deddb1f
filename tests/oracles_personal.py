"""Personalised methods as float64 NumPy loops, written from the papers.

As in `oracles_global`: [first, second], full batches, cohorts; everybody does
`epochs` local steps.
"""

import numpy as np
from oracles import client_arrays, loss_and_grad
from oracles_global import axpy, gradient, mean


def _counts(data, cohort):
  return np.asarray(data.train.count, np.float64)[cohort]


def descend(w, data, k, *, rate, steps, pulled_to=None, strength=0.0):
  """Gradient descent on F_k(w) + strength / 2 ||w - pulled_to||^2."""
  for _ in range(steps):
    g = gradient(w, data, k)
    if pulled_to is not None:
      g = axpy(strength, axpy(-1, pulled_to, w), g)
    w = axpy(-rate, g, w)
  return w


def local_only(w, data, cohorts, *, rate, epochs):
  """Returns {client: its own model} of those that ever trained."""
  own = {}
  for cohort in cohorts:
    for k in cohort:
      start = own.get(k, w)
      own[k] = descend(start, data, k, rate=rate, steps=epochs)
  return own


def reptile(w, data, cohorts, *, rate, epochs, server_rate):
  """Nichol et al. 2018, batch version, tasks weighted by their examples."""
  for cohort in cohorts:
    new = [descend(w, data, k, rate=rate, steps=epochs) for k in cohort]
    moved = axpy(-1, w, mean(new, _counts(data, cohort)))
    w = axpy(server_rate, moved, w)
  return w


def ditto(w, data, cohorts, *, rate, epochs, personal_epochs, lam):
  """Li et al. 2021, Algorithm 1.  Returns (w, {client: v_k})."""
  own = {}
  for cohort in cohorts:
    new = []
    for k in cohort:
      new.append(descend(w, data, k, rate=rate, steps=epochs))
      own[k] = descend(
        own.get(k, w),
        data,
        k,
        rate=rate,
        steps=personal_epochs,
        pulled_to=w,
        strength=lam,
      )
    w = mean(new, _counts(data, cohort))
  return w, own


def p_fed_me(
  w, data, cohorts, *, rate, epochs, lam, inner_rate, inner_steps, server_rate
):
  """Dinh et al. 2020, Algorithm 1; the inner solver starts at w_k."""
  for cohort in cohorts:
    new = []
    for k in cohort:
      local = w
      for _ in range(epochs):
        theta = descend(
          local,
          data,
          k,
          rate=inner_rate,
          steps=inner_steps,
          pulled_to=local,
          strength=lam,
        )
        local = axpy(-rate * lam, axpy(-1, theta, local), local)
      new.append(local)
    averaged = mean(new, _counts(data, cohort))
    w = [
      (1 - server_rate) * a + server_rate * b
      for a, b in zip(w, averaged, strict=True)
    ]
  return w


def apfl(w, data, cohorts, *, rate, epochs, alpha, alpha_rate):
  """Deng et al. 2020, Algorithm 1.  Returns (w, {client: (v, alpha)})."""
  own = {}
  for cohort in cohorts:
    new = []
    for k in cohort:
      local = w
      v, share = own.get(k, (w, alpha))
      for _ in range(epochs):
        mixed = axpy(share, v, [(1 - share) * a for a in local])
        g_local = gradient(local, data, k)
        g_mixed = gradient(mixed, data, k)
        slope = sum(
          ((a - b) * g).sum() for a, b, g in zip(v, local, g_mixed, strict=True)
        )
        local = axpy(-rate, g_local, local)
        v = axpy(-rate * share, g_mixed, v)
        share = min(max(share - alpha_rate * slope, 0.0), 1.0)
      own[k] = v, share
      new.append(local)
    w = mean(new, _counts(data, cohort))
  return w, own


def partly_shared(
  w, data, cohorts, *, rate, epochs, personal, head_epochs=None
):
  """FedPer and LG-FedAvg (together), FedRep (head first, then body).

  Args:
    personal: 0 or 1, which of [first, second] stays.
    head_epochs: None trains both parts together.

  Returns:
    (w, {client: its personal layer}); w[personal] is where they start.
  """
  own, shared = {}, 1 - personal
  for cohort in cohorts:
    new = []
    for k in cohort:
      local = list(w)
      local[personal] = own.get(k, w[personal])
      for _ in range(head_epochs or 0):
        g = gradient(local, data, k)
        local[personal] = local[personal] - rate * g[personal]
      for _ in range(epochs):
        g = gradient(local, data, k)
        local[shared] = local[shared] - rate * g[shared]
        if head_epochs is None:
          local[personal] = local[personal] - rate * g[personal]
      own[k] = local[personal]
      new.append([local[shared]])
    w = list(w)
    w[shared] = mean(new, _counts(data, cohort))[0]
  return w, own


def per_fed_avg(w, data, cohorts, *, rate, epochs, inner_rate, order, hessian):
  """Fallah et al. 2020, Algorithm 1; H v by central differences in float64.

  Args:
    order: (round, client, epoch) -> the order of its examples, of which every
      other one, from the first, is support and the rest is query.
  """
  for t, cohort in enumerate(cohorts):
    new = []
    for k in cohort:
      local, (x, y) = w, client_arrays(data, k)
      for epoch in range(epochs):
        rows = order(t, k, epoch)
        support, query = rows[0::2], rows[1::2]

        def on(rows, params, x=x, y=y):
          return list(loss_and_grad(*params, x[rows], y[rows])[1])

        adapted = axpy(-inner_rate, on(support, local), local)
        g = on(query, adapted)
        if hessian:
          up = on(support, axpy(1e-6, g, local))
          down = on(support, axpy(-1e-6, g, local))
          g = axpy(-inner_rate / 2e-6, axpy(-1, down, up), g)
        local = axpy(-rate, g, local)
      new.append(local)
    w = mean(new, _counts(data, cohort))
  return w
