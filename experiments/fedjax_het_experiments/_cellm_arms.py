"""The arms of `cellm`, each with the same trials."""

from collections.abc import Callable

import optax

from fedjax_het.algorithms import (
  fed_lora,
  federated_select,
  ffa_lora,
  flasc,
  het_lora,
  sparse_adapter,
)
from fedjax_het.core.types import Array
from fedjax_het.models.lora import Adapted
from fedjax_het_experiments._cellm_tasks import Task
from fedjax_het_experiments._comparison import Method

DENSE = "dense LoRA, rank 16"
FOURTH, SIXTEENTH = "FLASC 1/4", "FLASC 1/16"
GLOBAL = "FLASC 1/4, global"
UPLINK = "FLASC down 1/4, up 1/64"
RANK4, RANK1 = "dense LoRA, rank 4", "dense LoRA, rank 1"
EARLY = "SparseAdapter 1/4, early"
WARM = "SparseAdapter 1/4, warm"
SELECT = "Federated Select 1/4"
HETLORA, TIERS = "HetLoRA, ranks 1, 4, 16", "FLASC, 1/16, 1/4, 1"
FFA = "FFA-LoRA"

#: (clients' rate, server's rate), the trials of every arm.
TRIALS = ((0.02, 0.01), (0.05, 0.005), (0.05, 0.015))


def methods(
  task: Task,
  adapted: Callable[[int], Adapted],
  *,
  batch_size: int,
  epochs: int,
  rounds: int,
) -> list[Method]:
  """All arms: clients do SGD with momentum 0.9, the server Adam.

  Args:
    task: gives the loss.
    adapted: rank -> the base with adapters.
    batch_size, epochs: of local training.
    rounds: of a run; a sixth of them warms SparseAdapter's second arm.
  """
  sixteen, four, one = (adapted(rank) for rank in (16, 4, 1))

  def arm(name, factory, model, **options):
    def build(rates: Array):
      return factory(
        model,
        optimizer=optax.sgd(rates[0], momentum=0.9),
        batch_size=batch_size,
        epochs=epochs,
        server_optimizer=optax.adam(rates[1]),
        loss=task.loss,
        **options,
      )

    return Method(name, build, TRIALS)

  def sparse(name, down, up, **options):
    return arm(
      name,
      flasc,
      sixteen,
      down_density=down,
      up_density=up,
      include_full=False,
      **options,
    )

  rest = {"density": 1 / 4, "include_full": False}
  tiers = (1 / 16, 1 / 4, 1.0)
  return [
    arm(DENSE, fed_lora, sixteen),
    sparse(FOURTH, 1 / 4, 1 / 4),
    sparse(GLOBAL, 1 / 4, 1 / 4, scope="global"),
    sparse(SIXTEENTH, 1 / 16, 1 / 16),
    sparse(UPLINK, 1 / 4, 1 / 64),
    arm(RANK4, fed_lora, four),
    arm(RANK1, fed_lora, one),
    # the rival as FLASC's code has it: everything ranked after one round
    arm(EARLY, sparse_adapter, sixteen, scope="global", **rest),
    arm(WARM, sparse_adapter, sixteen, warm_rounds=-(-rounds // 6), **rest),
    arm(SELECT, federated_select, sixteen, **rest),
    arm(HETLORA, het_lora, sixteen, ranks=(1, 4, 16)),
    sparse(TIERS, tiers, tiers, evaluate="whole"),
    arm(FFA, ffa_lora, sixteen),
  ]
