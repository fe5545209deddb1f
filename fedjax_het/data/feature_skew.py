"""Feature skew: clients see the same kinds of things in different ways.

Each client has a `View` of the inputs: its camera is turned, its colours are
off, its sensor is noisy.  One example has one owner, so a client's rows are
changed once, on the host, when the data are dealt; a round costs nothing more.

Example:
  >>> from fedjax_het.data import federated, partition, sources
  >>> digits = sources.load("digits")
  >>> parts = partition.iid(digits.train_y, 8)
  >>> plain = federated.federate(digits, parts)
  >>> views = parse("rotation:0/90/180/270", 8)
  >>> [view.name for view in views[:2]]
  ['rotation:0', 'rotation:90']
  >>> apply(plain, views, heldout="share").examples.x.shape
  (1437, 8, 8, 1)

References:
  Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study,
  arXiv:2102.02079 (noise); Ghosh et al., An Efficient Framework for Clustered
  Federated Learning, arXiv:2006.04088 (rotations by group).
"""

import os
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from fedjax_het.core.errors import UserError, unknown
from fedjax_het.core.types import Examples, FederatedData
from fedjax_het.data._groups import deal_groups, heldout_codes, number
from fedjax_het.data._owners import NOBODY
from fedjax_het.data._rows import owners
from fedjax_het.data._views import (
  PLAIN,
  STYLES,
  Range,
  View,
  blur,
  chain,
  colour,
  contrast,
  gamma,
  measure,
  noise,
  rotation,
  style,
)

__all__ = [
  "KINDS",
  "PLAIN",
  "STYLES",
  "Range",
  "View",
  "apply",
  "blur",
  "by_group",
  "chain",
  "colour",
  "contrast",
  "gamma",
  "look",
  "measure",
  "noise",
  "parse",
  "plot",
  "rotation",
  "style",
]


def apply(
  data: FederatedData,
  views: Sequence[View],
  *,
  heldout: str = "plain",
  seed: int = 0,
) -> FederatedData:
  """Changes the train and test inputs of each client by its own view.

  Args:
    data: a data set in which no two clients share a row.
    views: one a client; views of one name are taken to be the same.
    heldout: how the examples that judge the global model are seen: "plain", as
      they are; "share", an equal share of them, at random, in each of the
      clients' views; "every", all of them in each view (V times as many).
      "plain" asks about a world that most clients never see, "share" and
      "every" about the clients' worlds, each with the same weight.
    seed: of noise and shares.

  Returns:
    The data set with other `x`; labels, rows and budgets as before.

  Raises:
    UserError: clients that share rows, not one view a client, a view that the
      shape of the inputs does not allow, or token inputs.
  """
  x = np.asarray(data.examples.x)
  distinct, code = number("view", views, data.num_clients)
  owner = owners(data)
  each = np.where(owner == NOBODY, -1, code[owner])
  extent = measure(x)
  held_x, held_y = np.asarray(data.heldout.x), np.asarray(data.heldout.y)
  rows, held = heldout_codes(
    heldout, held_y.size, len(distinct), np.random.default_rng([seed, 1])
  )
  held_x = look(held_x[rows], held, distinct, extent, [seed, 2])
  x = look(x, each, distinct, extent, [seed, 0])
  return data._replace(
    examples=data.examples._replace(x=jnp.asarray(x)),
    heldout=Examples(jnp.asarray(held_x), jnp.asarray(held_y[rows])),
  )


def look(
  x: np.ndarray,
  code: np.ndarray,
  views: Sequence[View],
  extent: Range,
  seed: Sequence[int],
) -> np.ndarray:
  """Each example in the view that its code names.

  Args:
    x: f32[n, ...].
    code: i[n], positions in `views`; -1 leaves the example alone, and so does
      a view called "plain".
    views: V.
    extent: the range of the whole data set (see `measure`).
    seed: whole numbers; view v draws from the generator of [*seed, v].

  Returns:
    f32[n, ...], a copy.

  Raises:
    UserError: a view that these inputs do not allow, or that does not give
      finite f32 inputs of the same shape.
  """
  out = np.array(x)
  for v, view in enumerate(views):
    rows = np.flatnonzero(code == v)
    if not rows.size or view.name == PLAIN.name:
      continue
    if x.dtype.kind != "f":
      raise UserError(
        f"view {view.name} changes numbers, not tokens: the inputs are "
        f"{x.dtype} {list(x.shape)}"
      )
    seen = view.change(x[rows], extent, np.random.default_rng([*seed, v]))
    if np.shape(seen) != (rows.size, *x.shape[1:]):
      raise UserError(
        f"view {view.name} turned {[rows.size, *x.shape[1:]]} into "
        f"{list(np.shape(seen))}: a view must keep the shape"
      )
    if not np.isfinite(seen).all():
      raise UserError(f"view {view.name} gave NaN or Inf")
    out[rows] = seen
  return out


def by_group(
  num_clients: int, views: Sequence[View], seed: int | None = None
) -> list[View]:
  """One of a few views for each client, in groups of equal size.

  Args:
    num_clients: N, at least the number of views.
    views: V.
    seed: of a random deal; None gives client k view k mod V.

  Returns:
    N views, for `apply`.
  """
  return [views[g] for g in deal_groups(num_clients, len(views), seed)]


KINDS: dict[str, Callable[[float], View]] = {
  "rotation": rotation,
  "noise": noise,
  "gain": lambda value: colour(gain=value),
  "offset": lambda value: colour(offset=value),
  "blur": blur,
  "contrast": contrast,
  "gamma": gamma,
}


def parse(spec: str, num_clients: int, seed: int | None = None) -> list[View]:
  """Deals views that a string names: `KIND:VALUE/VALUE/...`.

  Args:
    spec: e.g. "rotation:0/90/180/270", "noise:0/0.5/1", "gain:0.5/1/2",
      "style:plain/negative/dark", or "plain".
    num_clients: N.
    seed: as in `by_group`.

  Returns:
    N views.

  Raises:
    UserError: an unknown kind or style, or a value that is no number.
  """
  kind, _, rest = spec.partition(":")
  if spec == "plain":
    return [PLAIN] * num_clients
  if kind != "style" and kind not in KINDS:
    raise unknown("kind of view", kind, [*KINDS, "style", "plain"])
  views = []
  for text in rest.split("/"):
    if kind == "style":
      views.append(style(text.strip()))
      continue
    try:
      views.append(KINDS[kind](float(text)))
    except UserError:
      raise
    except ValueError:
      raise UserError(
        f"views {spec!r}: {text!r} is not a number; write {kind}:1/2, one "
        "value for each group of clients"
      ) from None
  return by_group(num_clients, views, seed)


def plot(
  x: np.ndarray,
  views: Sequence[View],
  path: str | os.PathLike | None = None,
  *,
  num_examples: int = 8,
  seed: int = 0,
):
  """A contact sheet: one row a view, one column an example.

  Args:
    x: f32[n, h, w, c], normalised; the first ones are drawn.
    views: V.
    path: where to write the picture (PNG, SVG, ...); None writes nothing.
    num_examples: columns.
    seed: of noise.

  Returns:
    The matplotlib figure.
  """
  from matplotlib.figure import Figure  # no pyplot: no global state, no window

  x, views = np.asarray(x), list(views)
  extent = measure(x)
  width = np.where(extent.high > extent.low, extent.high - extent.low, 1)
  x = x[:num_examples]
  figure = Figure(
    figsize=(1.2 + 0.9 * len(x), 0.9 * len(views)), layout="constrained"
  )
  axes = figure.subplots(len(views), len(x), squeeze=False)
  for v, (view, row) in enumerate(zip(views, axes, strict=True)):
    seen = look(x, np.full(len(x), v), views, extent, [seed])
    seen = np.clip((seen - extent.low) / width, 0, 1)
    for ax, image in zip(row, seen, strict=True):
      ax.imshow(
        image if image.shape[-1] == 3 else image[..., 0],
        cmap="gray",
        vmin=0,
        vmax=1,
      )
      ax.set_xticks([])
      ax.set_yticks([])
    row[0].set_ylabel(
      view.name, rotation=0, ha="right", va="center", fontsize="small"
    )
  if path is not None:
    figure.savefig(path, dpi=120)
  return figure
