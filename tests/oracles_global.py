"""Methods with one global model as float64 NumPy loops, from the papers.

Parameters are lists [first, second]; batches are full; `cohorts` lists who
takes part in each round; `steps[k]` is how many local steps client k does.
"""

import numpy as np
from oracles import client_arrays, loss_and_grad


def axpy(scale, x, y):
  """scale x + y, leaf by leaf."""
  return [scale * a + b for a, b in zip(x, y, strict=True)]


def zeros(x):
  return [np.zeros_like(a) for a in x]


def gradient(w, data, k):
  return loss_and_grad(*w, *client_arrays(data, k))[1]


def mean(trees, weights):
  return [
    np.average(leaves, axis=0, weights=weights)
    for leaves in zip(*trees, strict=True)
  ]


def _counts(data, cohort):
  return np.asarray(data.train.count, np.float64)[cohort]


def fed_adagrad(w, data, cohorts, *, rate, steps, server_rate, start, eps):
  """Reddi et al., Algorithm 2 without first moment: v += delta^2."""
  v = [np.full_like(a, start) for a in w]
  for cohort in cohorts:
    new = []
    for k in cohort:
      local = w
      for _ in range(steps[k]):
        local = axpy(-rate, gradient(local, data, k), local)
      new.append(axpy(-1, w, local))
    delta = mean(new, _counts(data, cohort))
    v = [a + d**2 for a, d in zip(v, delta, strict=True)]
    w = [
      p + server_rate * d / np.sqrt(a + eps)
      for p, d, a in zip(w, delta, v, strict=True)
    ]
  return w


def fed_prox(w, data, cohorts, *, rate, steps, mu):
  """Li et al. 2020, Algorithm 2 with gradient descent as the local solver."""
  for cohort in cohorts:
    new = []
    for k in cohort:
      local = w
      for _ in range(steps[k]):
        proximal = [mu * (a - b) for a, b in zip(local, w, strict=True)]
        g = axpy(1, gradient(local, data, k), proximal)
        local = axpy(-rate, g, local)
      new.append(local)
    w = mean(new, _counts(data, cohort))
  return w


def fed_nova(w, data, cohorts, *, rate, momentum, steps):
  """Wang et al. 2020, section 4: ||a||_1 in closed form."""
  rho = momentum
  for cohort in cohorts:
    p = _counts(data, cohort) / _counts(data, cohort).sum()
    total, tau_eff = zeros(w), 0.0
    for share, k in zip(p, cohort, strict=True):
      local, m, tau = w, zeros(w), steps[k]
      for _ in range(tau):
        m = axpy(rho, m, gradient(local, data, k))
        local = axpy(-rate, m, local)
      length = (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
      total = axpy(share / length, axpy(-1, w, local), total)
      tau_eff += share * length
    w = axpy(tau_eff, total, w)
  return w


def scaffold(x, data, cohorts, *, rate, steps, server_rate=1.0):
  """Karimireddy et al. 2020, Algorithm 1, option II.

  Returns:
    (x, c, list of c_k).
  """
  n = data.num_clients
  c, own = zeros(x), [zeros(x) for _ in range(n)]
  for cohort in cohorts:
    moves, changes = [], []
    for k in cohort:
      y = x
      for _ in range(steps[k]):
        g = axpy(1, c, axpy(-1, own[k], gradient(y, data, k)))
        y = axpy(-rate, g, y)
      new = axpy(-1, c, own[k])
      new = axpy(1 / (steps[k] * rate), axpy(-1, y, x), new)
      moves.append(axpy(-1, x, y))
      changes.append(axpy(-1, own[k], new))
      own[k] = new
    even = np.ones(len(cohort))
    x = axpy(server_rate, mean(moves, even), x)
    c = axpy(len(cohort) / n, mean(changes, even), c)
  return x, c, own


def fed_dyn(theta, data, cohorts, *, rate, steps, alpha):
  """Acar et al. 2021, Algorithm 1, in the paper's own variables h and g_k.

  Returns:
    (theta, h, list of g_k).
  """
  m = data.num_clients
  h, g = zeros(theta), [zeros(theta) for _ in range(m)]
  for cohort in cohorts:
    new = []
    for k in cohort:
      local = theta
      for _ in range(steps[k]):
        d = axpy(-1, g[k], gradient(local, data, k))
        d = axpy(alpha, axpy(-1, theta, local), d)
        local = axpy(-rate, d, local)
      g[k] = axpy(-alpha, axpy(-1, theta, local), g[k])
      new.append(local)
    for local in new:
      h = axpy(-alpha / m, axpy(-1, theta, local), h)
    theta = axpy(-1 / alpha, h, mean(new, np.ones(len(new))))
  return theta, h, g


def _cosine(a, b):
  """Cosine of the rows of a and b, and its derivative with respect to a."""
  norm_a = np.linalg.norm(a, axis=1, keepdims=True)
  norm_b = np.linalg.norm(b, axis=1, keepdims=True)
  both = norm_a * norm_b
  both = np.where(both > 0, both, np.inf)
  cos = (a * b).sum(1, keepdims=True) / both
  norm_a = np.where(norm_a > 0, norm_a, np.inf)
  return cos, b / both - cos * a / norm_a**2


def moon(w, data, cohorts, *, rate, steps, mu, temperature, hidden):
  """Li et al. 2021, Algorithm 1, on the hidden layer or the logits."""
  previous = {}

  def features(params, x):
    h = np.maximum(x @ params[0], 0)
    return h if hidden else h @ params[1]

  def contrast_gradient(params, received, last, x):
    h = np.maximum(x @ params[0], 0)
    z = features(params, x)
    s_glob, d_glob = _cosine(z, features(received, x))
    s_prev, d_prev = _cosine(z, features(last, x))
    # -log(e^a / (e^a + e^b)), a = s_glob / T, b = s_prev / T
    e_glob, e_prev = np.exp(s_glob / temperature), np.exp(s_prev / temperature)
    share = e_prev / (e_glob + e_prev)
    dz = share * (d_prev - d_glob) / temperature / len(x)
    dh = dz if hidden else dz @ params[1].T
    second = np.zeros_like(params[1]) if hidden else h.T @ dz
    return [x.T @ (dh * (h > 0)), second]

  for cohort in cohorts:
    new = []
    for k in cohort:
      local, x = w, client_arrays(data, k)[0]
      for _ in range(steps[k]):
        g = gradient(local, data, k)
        if k in previous:
          g = axpy(mu, contrast_gradient(local, w, previous[k], x), g)
        local = axpy(-rate, g, local)
      new.append(local)
    previous |= dict(zip(cohort, new, strict=True))
    w = mean(new, _counts(data, cohort))
  return w


def mime(x, data, cohorts, *, rate, momentum, steps, lite):
  """Karimireddy et al. 2021, Algorithm 1 with momentum m = g + rho m.

  Mime's c is the mean gradient of the round before (see `_mime.py`).
  """
  m, c = zeros(x), zeros(x)
  for cohort in cohorts:
    new, full = [], []
    for k in cohort:
      y, at_start = x, gradient(x, data, k)
      for _ in range(steps[k]):
        g = gradient(y, data, k)
        if not lite:
          g = axpy(1, c, axpy(-1, at_start, g))
        y = axpy(-rate, axpy(momentum, m, g), y)
      new.append(y)
      full.append(at_start)
    x = mean(new, _counts(data, cohort))
    c = mean(full, _counts(data, cohort))
    m = axpy(momentum, m, c)
  return x
