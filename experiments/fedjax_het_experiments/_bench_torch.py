"""The PyTorch rival of `bench_engine`: a plain loop over clients on the CPU.

Stands alone, so that it can run under an interpreter that has torch and not
JAX: `python _bench_torch.py DATA.npz MODEL COHORT PROCESSES`.  Reads one line
from stdin per round to run and answers with its seconds; "end" with its peak
memory.
"""

import json
import multiprocessing
import resource
import sys
import time

import numpy as np
import torch
from torch import nn

BATCH, RATE = 20, 0.1


def network(name: str) -> nn.Module:
  """The same networks as `fedjax_het.models` builds."""
  if name == "mlp":
    return nn.Sequential(
      nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)
    )
  return nn.Sequential(
    nn.Conv2d(1, 32, 5, padding=2),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 5, padding=2),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(7 * 7 * 64, 512),
    nn.ReLU(),
    nn.Linear(512, 10),
  )


class Clients:
  """Trains clients one after another from given global parameters."""

  def __init__(self, path: str, name: str):
    data = np.load(path)
    self.x = torch.from_numpy(data["x"])[:, None]
    self.y = torch.from_numpy(data["y"]).long()
    self.index = torch.from_numpy(data["index"]).long()
    self.net = network(name)
    self.params = list(self.net.parameters())

  def train(self, start, clients) -> list[torch.Tensor]:
    """Sum over `clients` of the parameters after one local epoch."""
    total = [torch.zeros_like(p) for p in start]
    loss = nn.CrossEntropyLoss()
    for k in clients:
      with torch.no_grad():
        for p, s in zip(self.params, start, strict=True):
          p.copy_(s)
      optimizer = torch.optim.SGD(self.params, lr=RATE)
      rows = self.index[k][torch.randperm(self.index.shape[1])]
      for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        optimizer.zero_grad()
        loss(self.net(self.x[batch]), self.y[batch]).backward()
        optimizer.step()
      with torch.no_grad():
        for t, p in zip(total, self.params, strict=True):
          t += p
    return total


def work(pipe, path, name, start, total) -> None:
  """A child process: gets client ids, leaves its sum in shared memory."""
  torch.set_num_threads(1)
  clients = Clients(path, name)
  while (ids := pipe.recv()) is not None:
    for t, new in zip(total, clients.train(start, ids), strict=True):
      t.copy_(new)
    pipe.send(True)


def main() -> None:
  path, name, cohort, processes = sys.argv[1:]
  cohort, processes = int(cohort), int(processes)
  params = [p.detach().clone() for p in network(name).parameters()]
  rng, num_clients = np.random.default_rng(0), len(np.load(path)["index"])
  pipes, sums = [], []
  if processes == 1:
    clients = Clients(path, name)
  else:
    context = multiprocessing.get_context("spawn")
    for p in params:
      p.share_memory_()
    for _ in range(processes):
      ours, theirs = context.Pipe()
      sums.append([torch.zeros_like(p).share_memory_() for p in params])
      context.Process(
        target=work, args=(theirs, path, name, params, sums[-1]), daemon=True
      ).start()
      pipes.append(ours)

  def one_round() -> None:
    ids = rng.permutation(num_clients)[:cohort]
    if processes == 1:
      parts = [clients.train(params, ids)]
    else:
      for pipe, mine in zip(pipes, np.array_split(ids, processes), strict=True):
        pipe.send(mine)
      for pipe in pipes:
        pipe.recv()
      parts = sums
    with torch.no_grad():
      for p, *each in zip(params, *parts, strict=True):
        p.copy_(sum(each) / cohort)

  one_round()
  print(json.dumps({"ready": True}), flush=True)
  for line in sys.stdin:
    if line.strip() == "end":
      break
    start = time.perf_counter()
    one_round()
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
  for pipe in pipes:
    pipe.send(None)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(json.dumps({"peak_mb": peak / 1024}), flush=True)


if __name__ == "__main__":
  main()
