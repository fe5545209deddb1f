"""Methods that give each client a model of its own.

Those that keep a layer personal keep the first or the last one in the order of
the parameter tree.
"""

import functools

from fedjax_het.algorithms._apfl import apfl
from fedjax_het.algorithms._ditto import ditto
from fedjax_het.algorithms._entries import entry, split, tuned
from fedjax_het.algorithms._fed_bn import fed_bn
from fedjax_het.algorithms._fed_per import fed_per
from fedjax_het.algorithms._fed_rep import fed_rep
from fedjax_het.algorithms._fine_tuned import fine_tuned
from fedjax_het.algorithms._lg_fed_avg import lg_fed_avg
from fedjax_het.algorithms._local_only import local_only
from fedjax_het.algorithms._p_fed_me import p_fed_me
from fedjax_het.algorithms._per_fed_avg import per_fed_avg
from fedjax_het.algorithms._reptile import reptile

_personal = functools.partial(entry, judged_by="client_mean")

PERSONAL = {
  "local_only": _personal(local_only, "no communication at all", epochs=2),
  "fine_tuned": _personal(
    fine_tuned,
    "FedAvg, then some training on each client's own data",
    make=tuned,
    batch_size=8,
  ),
  "reptile": _personal(
    reptile, "FedAvg with a server rate, then tuned", server_rate=0.5
  ),
  "per_fed_avg": _personal(
    per_fed_avg, "a start that one gradient step makes good", inner_rate=0.1
  ),
  "per_fed_avg_fo": _personal(
    per_fed_avg,
    "Per-FedAvg without the Hessian",
    inner_rate=0.1,
    first_order=True,
  ),
  "p_fed_me": _personal(
    p_fed_me,
    "global model of the clients' Moreau envelopes",
    lam=5.0,
    inner_rate=0.05,
  ),
  "ditto": _personal(ditto, "personal models held near FedAvg's", lam=0.1),
  "apfl": _personal(apfl, "learnt mixtures of own and global model"),
  "fed_per": _personal(
    fed_per, "own top layer, shared rest", make=split, layer=-1
  ),
  "lg_fed_avg": _personal(
    lg_fed_avg, "own lower layers, shared top", make=split, layer=0
  ),
  "fed_rep": _personal(
    fed_rep,
    "own head fitted first, then the shared body",
    make=split,
    layer=-1,
    head_epochs=2,
  ),
  "fed_bn": _personal(fed_bn, "FedAvg with local normalisation layers"),
}
