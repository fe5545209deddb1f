"""Schedules the slow and obvious way, one list and no heap, no classes shared.

Each function returns the merges in order as
[(time, [(client, steps, weight of its change, versions late), ...]), ...].
`lasts(task, client, steps)` are the seconds of update number `task`.
"""

import math


def _first(flying):
  """Takes the update that arrives first; ties by when it was sent."""
  best = min(flying, key=lambda update: (update["arrives"], update["task"]))
  flying.remove(best)
  return best


def buffered(weights, lasts, order, steps, size, rate, power, merges):
  """FedBuff with everybody busy; size 1 is FedAsync that adds changes.

  `order` is the random order in which the clients are sent out at first.
  """
  count, version, task = len(weights), 0, 0
  total = sum(weights)
  flying, buffer, out = [], [], []
  for client in order:
    flying.append(_sent(task, client, steps, 0.0, version, lasts))
    task += 1
  while len(out) < merges:
    update = _first(flying)
    now = update["arrives"]
    buffer.append(update)
    if len(buffer) == size:
      merged = []
      for u in buffer:
        late = version - u["version"]
        share = count * weights[u["client"]] / total
        weight = rate / size * share * (1 + late) ** -power
        merged.append((u["client"], steps, weight, late))
      out.append((now, merged))
      buffer = []
      version += 1
    # everybody is always busy: the one who came goes again
    again = update["client"]
    flying.append(_sent(task, again, steps, now, version, lasts))
    task += 1
  return out


def compass(weights, lasts, low, high, slack, rate, power, keep, merges):
  """FedCompass: groups in a plain list, alarms looked for at every step."""
  total = sum(weights)
  state = {"version": 0, "task": 0}
  speed, groups, flying, late, out = {}, [], [], [], []

  def send(client, steps, now, group):
    update = _sent(state["task"], client, steps, now, state["version"], lasts)
    update["group"] = group
    flying.append(update)
    state["task"] += 1

  def merge(now, updates):
    merged = []
    for u in updates:
      tau = state["version"] - u["version"]
      weight = rate * weights[u["client"]] / total * (1 + tau) ** -power
      merged.append((u["client"], u["steps"], weight, tau))
    out.append((now, merged))
    state["version"] += 1

  def assign(client, now):
    s = speed[client]
    fits = []
    for place, g in enumerate(groups):
      q = math.floor((g["expected"] - now) / s)
      if low <= q <= high:
        fits.append((q, -place))
    if fits:
      q, place = max(fits)
      group = groups[-place]
    else:
      options = []
      for g in groups:
        if now < g["latest"]:
          fastest = min(speed_at for speed_at in g["speeds"])
          q = math.floor((g["latest"] + fastest * high - now) / s)
          if q <= high:
            options.append(q)
      q = max(max(options), low) if options else high
      group = {
        "expected": now + q * s,
        "latest": now + slack * q * s,
        "out": [],
        "in": [],
        "speeds": [],
      }
      groups.append(group)
    group["out"].append(client)
    group["speeds"].append(s)
    send(client, q, now, group)

  def close(group, now):
    groups.remove(group)
    if not group["in"]:
      return
    merge(now, late + group["in"])
    late.clear()
    for u in sorted(
      group["in"], key=lambda u: (speed[u["client"]], u["client"])
    ):
      assign(u["client"], now)

  for client in range(len(weights)):
    send(client, high, 0.0, None)
  while len(out) < merges:
    arrival = min(u["arrives"] for u in flying)
    ringing = [g for g in groups if g["latest"] < arrival]
    if ringing:
      group = min(ringing, key=lambda g: g["latest"])
      close(group, group["latest"])
      continue
    u = _first(flying)
    client, now = u["client"], u["arrives"]
    measured = (now - u["sent"]) / u["steps"]
    if client in speed:
      measured = keep * speed[client] + (1 - keep) * measured
    speed[client] = measured
    if u["group"] is None:
      merge(now, [u])
      assign(client, now)
    elif all(g is not u["group"] for g in groups):
      late.append(u)
      assign(client, now)
    else:
      group = u["group"]
      group["out"].remove(client)
      group["in"].append(u)
      if not group["out"]:
        close(group, now)
  return out


def _sent(task, client, steps, now, version, lasts):
  return {
    "task": task,
    "client": client,
    "steps": steps,
    "sent": now,
    "version": version,
    "arrives": now + lasts(task, client, steps),
  }
