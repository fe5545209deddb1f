"""Methods that train masks on frozen weights, or on a pruned network."""

import functools

import optax

from fedjax_het.algorithms._entries import entry, pruned
from fedjax_het.algorithms._fed_pm import fed_pm
from fedjax_het.algorithms._hide_n_seek import hide_n_seek
from fedjax_het.algorithms._masked_fed_avg import masked_fed_avg

_signs = functools.partial(
  entry, hide_n_seek, make=pruned, optimizer=optax.adam(0.3), epochs=2
)

MASKS = {
  "masked_fed_avg": entry(
    masked_fed_avg, "FedAvg on a mask pruned at initialisation", make=pruned
  ),
  "hide_n_seek": _signs("frozen pruned weights, trained {-1, +1} signs"),
  "zero_one_supermask": _signs(
    "frozen pruned weights, trained {0, 1} mask", values=(0, 1)
  ),
  "personal_signs": _signs(
    "HideNseek whose clients keep their own signs", personal=True
  ),
  "fed_pm": entry(
    fed_pm,
    "probabilistic masks on random weights",
    optimizer=optax.adam(0.3),
    epochs=2,
  ),
}
