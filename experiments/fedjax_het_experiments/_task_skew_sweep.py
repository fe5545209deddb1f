"""FedAvg on one task, for many partitions, seeds and rates in one program."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms import fed_avg
from fedjax_het.core import chunking, evaluate, mesh, rounds, sweep
from fedjax_het.core.types import (
  Array,
  Examples,
  FederatedData,
  Model,
  Params,
  Rows,
)
from fedjax_het.data.federated import federate
from fedjax_het.data.sources import Dataset
from fedjax_het.data.tasks import mean_loss
from fedjax_het.selection import uniform
from fedjax_het.training.run import RunResult, train


class Schedule(NamedTuple):
  """What all tasks share.

  num_clients, size: the clients, and how many examples each holds.
  alphas: of the skewed partitions;  num_clusters: K.
  cohort_size, rounds, eval_every, batch, epochs: of FedAvg.
  embed_epochs: passes of the embedder over the pool.
  seeds: of the final runs;  tune_seeds: runs of each rate while tuning.
  workdir: where runs are kept;  config: recorded with them, guards --resume.
  options: further arguments of `training.run.train`.
  """

  num_clients: int
  size: int
  alphas: tuple[float, ...]
  num_clusters: int
  cohort_size: int
  rounds: int
  eval_every: int
  batch: int
  epochs: int
  embed_epochs: int
  seeds: tuple[int, ...]
  tune_seeds: int
  workdir: pathlib.Path
  config: Mapping[str, Any]
  options: Mapping[str, Any] = {}


class Problem(NamedTuple):
  """A task to be learnt: its data, network and measure (see `data.tasks`)."""

  data: Dataset
  model: Model
  features: Callable[[Params, Array], Array]
  measure: evaluate.Measure


class _Run(NamedTuple):
  rate: Array
  train: rounds.TrainState


def deal(
  dataset: Dataset,
  parts: Sequence[Sequence[np.ndarray]],
  seeds: Sequence[int],
) -> FederatedData:
  """One partition for each run, rows [G, N, R], all clients of one size.

  The examples are left out: `execute` puts in those of its task.
  """
  bare = dataset._replace(
    train_x=np.zeros((len(dataset.train_x), 0), np.float32),
    train_y=np.zeros(len(dataset.train_x), np.int32),
    test_x=np.zeros((1, 0), np.float32),
    test_y=np.zeros(1, np.int32),
  )
  dealt = [
    federate(bare, part, seed=seed)
    for part, seed in zip(parts, seeds, strict=True)
  ]
  return dealt[0]._replace(
    train=Rows(*map(jnp.stack, zip(*[d.train for d in dealt], strict=True))),
    test=Rows(*map(jnp.stack, zip(*[d.test for d in dealt], strict=True))),
  )


def execute(
  problem: Problem,
  schedule: Schedule,
  phase: str,
  data: FederatedData,
  rates: Sequence[float],
  seeds: Sequence[int],
) -> RunResult:
  """G runs of FedAvg, each with a rate, a seed and a partition of its own.

  Clients use Adam, made afresh every round: with one grid of rates all tasks
  train, while momentum leaves the inpainting network at the mean image.

  Args:
    problem: the task.
    schedule: cohort, rounds, batch, epochs, and where the runs are kept.
    phase: name of the runs and of their folder.
    data: from `deal`; the task's examples are put in here.
    rates, seeds: of each run.
  """
  made = problem.data
  data = data._replace(
    examples=Examples(jnp.asarray(made.train_x), jnp.asarray(made.train_y)),
    heldout=Examples(jnp.asarray(made.test_x), jnp.asarray(made.test_y)),
  )
  descend = jax.value_and_grad(mean_loss(problem.model, problem.measure))

  def algorithm(rate):
    return fed_avg(
      problem.model,
      optimizer=optax.adam(rate),
      batch_size=schedule.batch,
      epochs=schedule.epochs,
      gradient=lambda received: descend,
    )

  def start(pair):
    rate, seed = pair
    state = rounds.init_state(
      algorithm(rate), jax.random.key(seed), data.num_clients
    )
    return _Run(rate, state)

  on_cpu = jax.default_backend() == "cpu"
  spread = mesh.client_mesh() if on_cpu and jax.device_count() > 1 else None

  def make(chunk):
    def block(run, data):
      method = algorithm(run.rate)
      one = rounds.make_block(
        rounds.make_round(method, uniform(schedule.cohort_size), chunk=chunk),
        schedule.eval_every,
        evaluate.make_evaluate(
          method,
          problem.model,
          chunk=chunk,
          measure=problem.measure,
        ),
      )
      state, history = one(run.train, data)
      return _Run(run.rate, state), history

    return sweep.over_runs(
      block, mesh=spread, own_partition=True, vmap=not on_cpu
    )

  pairs = jnp.asarray(rates, jnp.float32), jnp.asarray(seeds, jnp.uint32)
  states = jax.jit(lambda pairs: jax.lax.map(start, pairs))(pairs)
  if spread is not None:
    # the states too: resumed ones would stay on the first device
    states, data = mesh.replicate((states, data), spread)
  return train(
    make(chunking.choose_chunk(make, (states, data), schedule.cohort_size)),
    states,
    data,
    rounds_per_block=schedule.eval_every,
    num_blocks=schedule.rounds // schedule.eval_every,
    workdir=schedule.workdir / phase,
    config={**schedule.config, "rates": list(rates), "seeds": list(seeds)},
    clients_per_round=schedule.cohort_size * len(seeds),
    num_seeds=len(seeds),
    name=phase.replace("/", " "),
    **schedule.options,
  )
