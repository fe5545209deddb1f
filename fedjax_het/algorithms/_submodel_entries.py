"""Methods whose clients hold, or use, only a part of the network."""

import functools

import optax

from fedjax_het.algorithms._entries import entry, plain
from fedjax_het.algorithms._fed_rolex import fed_rolex
from fedjax_het.algorithms._gate import gating
from fedjax_het.algorithms._hetero_fl import hetero_fl
from fedjax_het.algorithms._pfed_gate import pfed_gate
from fedjax_het.algorithms._split_mix import split_mix

_by_width = functools.partial(entry, rates=(1.0, 0.5, 0.25))


def _gated(factory, federation, *, density, **options):
  made = gating(federation.model, federation.input_shape, density=density)
  return plain(factory, federation, gating=made, **options)


SUBMODELS = {
  "hetero_fl": _by_width(hetero_fl, "the first units of each layer, by rate"),
  "fed_rolex": _by_width(fed_rolex, "HeteroFL with rolling windows of units"),
  "split_mix": _by_width(
    split_mix, "narrow base networks, trained and mixed by budget", bases=3
  ),
  "pfed_gate": entry(
    pfed_gate,
    "a private gate chooses and scales blocks of the model",
    make=_gated,
    judged_by="client_mean",
    density=0.6,
    gate_optimizer=optax.sgd(0.3),
  ),
}
