"""Methods with one global model."""

import functools

import optax

from fedjax_het.algorithms._centralised import centralised
from fedjax_het.algorithms._entries import counting, entry
from fedjax_het.algorithms._fed_avg import fed_avg
from fedjax_het.algorithms._fed_dyn import fed_dyn
from fedjax_het.algorithms._fed_nova import fed_nova
from fedjax_het.algorithms._fed_prox import fed_prox
from fedjax_het.algorithms._mime import mime
from fedjax_het.algorithms._moon import moon
from fedjax_het.algorithms._scaffold import scaffold

_server = functools.partial(entry, fed_avg)

GLOBAL = {
  "fed_avg": entry(fed_avg, "weighted mean of local models"),
  "fed_avg_m": _server(
    "FedAvg with server momentum",
    server_optimizer=optax.sgd(1.0, momentum=0.9),
  ),
  "fed_adagrad": _server(
    "FedAvg with Adagrad on the server",
    server_optimizer=optax.adagrad(0.1, initial_accumulator_value=1e-3),
  ),
  "fed_adam": _server(
    "FedAvg with Adam on the server",
    server_optimizer=optax.adam(0.01, b2=0.99, eps=1e-3),
  ),
  "fed_yogi": _server(
    "FedAvg with Yogi on the server",
    server_optimizer=optax.yogi(0.01, b2=0.99),
  ),
  "fed_prox": entry(fed_prox, "clients are held near the model", mu=0.1),
  "fed_nova": entry(
    fed_nova,
    "changes normalised by the length of local training",
    optimizer=optax.sgd(0.05, momentum=0.5),
  ),
  "scaffold": entry(
    scaffold,
    "control variates against the clients' drift",
    make=counting,
    rate=0.1,
  ),
  "fed_dyn": entry(
    fed_dyn,
    "dynamic regulariser against the clients' drift",
    make=counting,
    alpha=0.1,
    optimizer=optax.sgd(0.1),
  ),
  "moon": entry(moon, "contrast of features with the global model", mu=1.0),
  "mime": entry(
    mime,
    "server momentum inside local steps, variance reduced",
    optimizer=optax.sgd(0.05, momentum=0.5),
  ),
  "mime_lite": entry(
    mime,
    "server momentum inside local steps",
    optimizer=optax.sgd(0.05, momentum=0.5),
    lite=True,
  ),
  "centralised": entry(
    centralised,
    "plain training on `pooled(data)`",
    optimizer=optax.sgd(0.05, momentum=0.5),
  ),
}
