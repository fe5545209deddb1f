"""Every published method by name, with a small instance of each.

Examples are small and untuned: what the contract tests run and what a notebook
can start from.
"""

from fedjax_het.algorithms._entries import Entry, Federation
from fedjax_het.algorithms._global_entries import GLOBAL
from fedjax_het.algorithms._lora_entries import LORA
from fedjax_het.algorithms._mask_entries import MASKS
from fedjax_het.algorithms._personal_entries import PERSONAL
from fedjax_het.algorithms._personal_mask_entries import PERSONAL_MASKS
from fedjax_het.algorithms._pruning_entries import PRUNING
from fedjax_het.algorithms._spine_entries import SPINE
from fedjax_het.algorithms._stale_entries import STALE
from fedjax_het.algorithms._submodel_entries import SUBMODELS
from fedjax_het.core.errors import unknown
from fedjax_het.core.types import Algorithm, Model

REGISTRY: dict[str, Entry] = {
  **GLOBAL,
  **PERSONAL,
  **MASKS,
  **PERSONAL_MASKS,
  **PRUNING,
  **STALE,
  **SUBMODELS,
  **LORA,
  **SPINE,
}


def example(
  name: str,
  model: Model,
  input_shape: tuple[int, ...],
  num_clients: int = 100,
) -> Algorithm:
  """A small instance of a registered algorithm.

  Args:
    name: a key of `REGISTRY`.
    model: the network.
    input_shape: shape of one example, without the batch axis.
    num_clients: N of the data it will run on; SCAFFOLD and FedDyn divide by it.

  Returns:
    An `Algorithm`.

  Raises:
    UserError: an unknown name; it says the nearest one.
  """
  if name not in REGISTRY:
    raise unknown("algorithm", name, REGISTRY)
  return REGISTRY[name].example(Federation(model, input_shape, num_clients))
