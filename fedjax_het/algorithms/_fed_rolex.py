"""FedRolex: HeteroFL whose windows roll over the units, so that all train.

In round t the window of a layer of C units begins at unit t mod C and goes on
at unit 0 behind the last: after C rounds every unit was in every client's
window equally often.  In HeteroFL the last units train at the strongest clients
alone, and not at all if no client is strong enough.

Down and up: the block of parameters between a client's units, 32 bits each, as
in HeteroFL, and with the masked loss a bit a class more up; 32 bits more down,
the number of the round, which says where the windows begin.

Departures: those of HeteroFL (`_hetero_fl`), with its scaler, its masked loss
and its ceil(r C) units (paper: floor), as in the released code.  That code
rolls towards lower units; the paper's direction is taken here.

References:
  Alam et al.: FedRolex: Model-Heterogeneous Federated Learning with Rolling
  Sub-Model Extraction, NeurIPS 2022, arXiv:2212.01548.
"""

from collections.abc import Sequence

import optax

from fedjax_het.algorithms._hetero_fl import width_sub_models
from fedjax_het.core.types import Algorithm, Model


def fed_rolex(
  model: Model,
  rates: Sequence[float],
  *,
  optimizer: optax.GradientTransformation,
  batch_size: int,
  epochs: int = 1,
  scaler: bool = True,
  masked_loss: bool = True,
  by_examples: bool = False,
  layers: Sequence[str] | None = None,
) -> Algorithm:
  """`hetero_fl` with rolling windows; its first round is HeteroFL's.

  The arguments and the result are those of `hetero_fl`.
  """
  return width_sub_models(
    model,
    rates,
    rolling=True,
    optimizer=optimizer,
    batch_size=batch_size,
    epochs=epochs,
    scaler=scaler,
    masked_loss=masked_loss,
    by_examples=by_examples,
    layers=layers,
  )
