"""What `compare` leaves on disk of a method's final runs."""

import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_het.core import rounds
from fedjax_het.training import run
from fedjax_het.training.checkpoint import Checkpointer
from fedjax_het.training.metrics import read_jsonl
from fedjax_het_experiments._comparison import Method, Run, folder
from fedjax_het_experiments._setting import Setting


def records(setting: Setting, name: str) -> list[dict]:
  """The lines of metrics.jsonl; values are lists over seeds."""
  return read_jsonl(folder(setting, "final", name) / run.METRICS)


def last_states(
  setting: Setting, method: Method, seeds: Sequence[int]
) -> list[rounds.TrainState]:
  """The state after the last round, one for each seed.

  Args:
    setting: of the comparison.
    method: run by `compare` on `seeds`; who trains is the setting's choice.
    seeds: of the final runs.

  Raises:
    UserError: the checkpoint is missing or of another configuration.
  """
  rate = jnp.ones(jnp.shape(jnp.asarray(method.rates[0])))

  def start(seed):
    return rounds.init_state(
      method.build(rate), jax.random.key(seed), setting.num_clients
    )

  like = Run(
    jnp.ones((len(seeds), *rate.shape)),
    jax.jit(lambda seeds: jax.lax.map(start, seeds))(
      jnp.asarray(seeds, jnp.uint32)
    ),
  )
  where = folder(setting, "final", method.name)
  config = json.loads((where / run.CONFIG).read_text())
  with Checkpointer(where / run.CHECKPOINTS, config) as checkpoints:
    _, last = checkpoints.restore(like)
  return [
    jax.tree.map(lambda leaf, s=s: leaf[s], last.train)
    for s in range(len(seeds))
  ]
