"""Federated LoRA: FedAvg (or FedOpt) of adapters; and FFA-LoRA, of B alone.

`fed_lora`, down and up: all adapters and what is trained in full, 32 bits each.
`ffa_lora`: the same without A, which stays as it was drawn.  Once: the frozen
base, with it the A of FFA-LoRA (a seed would do).

The mean of A_k B_k is not the product of the means; with A frozen it is, and
noise for privacy enters once instead of twice.

References:
  Zhang et al.: Towards Building the Federated GPT: Federated Instruction
  Tuning, ICASSP 2024, arXiv:2305.05644 (FedIT).
  Sun et al.: Improving LoRA in Privacy-preserving Federated Learning, ICLR
  2024, arXiv:2403.12313 (FFA-LoRA).
"""

import optax

from fedjax_het.algorithms._flasc import flasc
from fedjax_het.core import local
from fedjax_het.core.types import Algorithm
from fedjax_het.models.lora import Adapted


def fed_lora(
  adapted: Adapted,
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  server_optimizer: optax.GradientTransformation | None = None,
  loss: local.Loss | None = None,
  by_examples: bool = False,
) -> Algorithm:
  """Averages whole adapters: `flasc` at densities of 1.

  The arguments and the result are those of `flasc`.
  """
  return flasc(
    adapted,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    server_optimizer=server_optimizer,
    down_density=1.0,
    up_density=1.0,
    loss=loss,
    by_examples=by_examples,
  )


def ffa_lora(adapted: Adapted, **options) -> Algorithm:
  """`fed_lora` in which A never moves: only B and the head train and travel.

  The options and the result are those of `fed_lora`.
  """
  return fed_lora(without_a(adapted), **options)


def without_a(adapted: Adapted) -> Adapted:
  """The same model with the A of every adapter among what is frozen."""

  def init(key):
    frozen, trained = adapted.init(key)
    lora = trained["lora"]
    held = {name: pair["a"] for name, pair in lora.items()}
    moving = {name: {"b": pair["b"]} for name, pair in lora.items()}
    return {"base": frozen, "a": held}, trained | {"lora": moving}

  def whole(frozen, trained):
    lora = {
      name: {"a": frozen["a"][name], **pair}
      for name, pair in trained["lora"].items()
    }
    return frozen["base"], trained | {"lora": lora}

  return Adapted(
    init,
    lambda frozen, trained: adapted.join(*whole(frozen, trained)),
    lambda frozen, trained: adapted.merge(*whole(frozen, trained)),
    adapted.model,
  )
