"""The JAX contestants of `bench_engine`: our engine and two obvious rivals.

`python -m fedjax_het_experiments._bench_jax DATA.npz MODEL COHORT WHO`.  Reads
one line from stdin per timing to take and answers with seconds per round;
"end" with its peak memory.
"""

import json
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het import models
from fedjax_het.algorithms import fed_avg
from fedjax_het.core import chunking, mesh, rounds
from fedjax_het.core.types import NO_BUDGET, Examples, FederatedData, Rows
from fedjax_het.selection import uniform
from fedjax_het_experiments import _flags

BATCH, RATE = 20, 0.1


def load(path: str) -> FederatedData:
  """The clients of the benchmark; nobody is tested here."""
  data = np.load(path)
  rows = Rows(
    jnp.asarray(data["index"], jnp.int32),
    jnp.full(len(data["index"]), data["index"].shape[1], jnp.int32),
  )
  examples = Examples(
    jnp.asarray(data["x"][..., None]), jnp.asarray(data["y"], jnp.int32)
  )
  few = Examples(examples.x[:1], examples.y[:1])
  budget = jnp.full(len(data["index"]), NO_BUDGET)
  return FederatedData(examples, rows, rows, few, budget)


def ours(name: str, cohort: int, data: FederatedData):
  """A block of rounds of the engine: (state -> state, rounds in a block)."""
  model = models.build(name, (28, 28, 1), 10)
  algorithm = fed_avg(model, optimizer=optax.sgd(RATE), batch_size=BATCH)
  state = rounds.init_state(algorithm, jax.random.key(0), data.num_clients)
  devices = mesh.client_mesh() if jax.device_count() > 1 else None
  if devices is not None:
    state, data = mesh.replicate((state, data), devices)
  updates = 1000 if name == "mlp" else 100  # a timing is a block of rounds
  num_rounds = max(1, updates // cohort)

  def make(chunk):
    run_round = rounds.make_round(
      algorithm, uniform(cohort), chunk=chunk, mesh=devices
    )
    return rounds.make_block(run_round, num_rounds)

  chunk = chunking.choose_chunk(make, (state, data), cohort)
  block = jax.jit(make(chunk), donate_argnums=0)
  return state, lambda state: block(state, data)[0], num_rounds


def plain_network(name: str):
  """(init, apply) as anybody would write them: lax convolutions and pooling."""
  if name == "mlp":
    shapes = [(784, 64), (64,), (64, 10), (10,)]
  else:
    shapes = [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,)]
    shapes += [(7 * 7 * 64, 512), (512,), (512, 10), (10,)]

  def init(key):
    keys = jax.random.split(key, len(shapes))
    return [
      jax.random.normal(k, shape) / np.sqrt(np.prod(shape[:-1]))
      for k, shape in zip(keys, shapes, strict=True)
    ]

  def apply(params, x):
    *convolutions, w1, b1, w2, b2 = params
    for w, b in zip(convolutions[::2], convolutions[1::2], strict=True):
      x = jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
      x = jax.lax.reduce_window(
        jax.nn.relu(x + b),
        -jnp.inf,
        jax.lax.max,
        (1, 2, 2, 1),
        (1, 2, 2, 1),
        "VALID",
      )
    x = x.reshape(x.shape[0], -1)
    return jax.nn.relu(x @ w1 + b1) @ w2 + b2

  return init, apply


def sgd_step(apply, params, x, y):
  """One step of plain SGD."""

  def loss(params):
    each = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
    return each.mean()

  grads = jax.grad(loss)(params)
  return jax.tree.map(lambda p, g: p - RATE * g, params, grads)


def obvious_vmap(name: str, cohort: int, data: FederatedData):
  """jit(vmap(scan over steps)) over the whole cohort."""
  init, apply = plain_network(name)

  def client(params, examples, index, key):
    order = jax.random.permutation(key, index).reshape(-1, BATCH)

    def step(params, rows):
      return sgd_step(apply, params, examples.x[rows], examples.y[rows]), None

    return jax.lax.scan(step, params, order)[0]

  def one_round(state, examples, index):
    params, key = state
    key, pick, train = jax.random.split(key, 3)
    ids = jax.random.permutation(pick, index.shape[0])[:cohort]
    new = jax.vmap(client, in_axes=(None, None, 0, 0))(
      params, examples, index[ids], jax.random.split(train, cohort)
    )
    return jax.tree.map(lambda p: p.mean(axis=0), new), key

  state = init(jax.random.key(0)), jax.random.key(1)
  args = data.examples, data.train.index
  one_round = jax.jit(one_round)
  return state, lambda state: one_round(state, *args), 1


def python_loop(name: str, cohort: int, data: FederatedData):
  """A Python loop over one jitted client update, its three steps unrolled."""
  init, apply = plain_network(name)

  @jax.jit
  def client(params, examples, index, key):
    order = jax.random.permutation(key, index).reshape(-1, BATCH)
    for rows in order:
      params = sgd_step(apply, params, examples.x[rows], examples.y[rows])
    return params

  add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=(0, 1))
  mean = jax.jit(lambda a: jax.tree.map(lambda p: p / cohort, a))
  index = np.asarray(data.train.index)
  rng = np.random.default_rng(0)

  def one_round(state):
    params, key = state
    ids = rng.permutation(len(index))[:cohort]
    key, *keys = jax.random.split(key, cohort + 1)
    total = None
    for k, client_key in zip(ids, keys, strict=True):
      new = client(params, data.examples, index[k], client_key)
      total = new if total is None else add(total, new)
    return mean(total), key

  state = init(jax.random.key(0)), jax.random.key(1)
  return state, one_round, 1


WHO = {"ours": ours, "vmap": obvious_vmap, "loop": python_loop}


def main() -> None:
  path, name, cohort, who = sys.argv[1:]
  if who == "ours":
    _flags.setup_devices(_flags.usable_cores())
  jax.config.update("jax_enable_compilation_cache", False)
  data = jax.block_until_ready(load(path))
  base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  state, run, num_rounds = WHO[who](name, int(cohort), data)
  start = time.perf_counter()
  state = jax.block_until_ready(run(state))
  first = time.perf_counter() - start
  print(json.dumps({"ready": True, "first_s": first}), flush=True)
  for line in sys.stdin:
    if line.strip() == "end":
      break
    start = time.perf_counter()
    state = jax.block_until_ready(run(state))
    seconds = (time.perf_counter() - start) / num_rounds
    print(json.dumps({"seconds": seconds}), flush=True)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(
    json.dumps({"peak_mb": peak / 1024, "data_mb": base / 1024}), flush=True
  )


if __name__ == "__main__":
  main()
