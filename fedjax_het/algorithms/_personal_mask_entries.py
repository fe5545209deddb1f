"""Methods whose clients have masks of their own on weights that are frozen."""

import functools

import optax

from fedjax_het.algorithms._entries import counting, entry
from fedjax_het.algorithms._fed_mask import fed_mask

_masked = functools.partial(
  entry,
  fed_mask,
  make=counting,
  judged_by="client_mean",
  optimizer=optax.adam(0.3),
  epochs=2,
)

PERSONAL_MASKS = {
  "fed_mask": _masked("personal {0, 1} masks, averaged where they overlap"),
  "fed_mask_vote": _masked(
    "FedMask whose server answers with the majority", downlink="vote"
  ),
}
