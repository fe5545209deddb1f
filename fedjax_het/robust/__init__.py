"""Liars among the clients: robust means, and attacks to try them on."""

from fedjax_het.robust._krum import krum
from fedjax_het.robust.attacks import (
  byzantine,
  gaussian,
  same_value,
  scaling,
  sign_flip,
  zero,
)
from fedjax_het.robust.poisoning import (
  Trigger,
  attack_success,
  backdoor,
  flip_labels,
  pixel_patch,
  stamp,
)
from fedjax_het.robust.rules import (
  coordinate_median,
  geometric_median,
  robust_mean,
  trimmed_mean,
  with_reducer,
)

__all__ = [
  "Trigger",
  "attack_success",
  "backdoor",
  "byzantine",
  "coordinate_median",
  "flip_labels",
  "gaussian",
  "geometric_median",
  "krum",
  "pixel_patch",
  "robust_mean",
  "same_value",
  "scaling",
  "sign_flip",
  "stamp",
  "trimmed_mean",
  "with_reducer",
  "zero",
]
