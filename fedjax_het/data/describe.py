"""What a partition looks like: numbers, a table, a plot."""

import os
from collections.abc import Sequence

import numpy as np

from fedjax_het.core.types import FederatedData
from fedjax_het.data import diversity
from fedjax_het.data.federated import label_counts


def effective_classes(counts: np.ndarray) -> np.ndarray:
  """Perplexity of each client's labels: exp(-sum_k p_k log p_k).

  Args:
    counts: i[N, K], examples of each class.

  Returns:
    f64[N], from 1 (one class) to K (all classes alike).
  """
  return diversity.hill(counts)


def label_distance(counts: np.ndarray) -> np.ndarray:
  """Total variation between each client's labels and all clients' together.

  Args:
    counts: i[N, K], examples of each class.

  Returns:
    f64[N]: the share of a client's examples that would have to change their
    class, 0 (as everybody) to 1.
  """
  return diversity.divergence(counts)


def summary(data: FederatedData) -> dict[str, np.ndarray]:
  """Per-client figures of a federated data set.

  Args:
    data: the federated data set.

  Returns:
    name -> f64[N] or i64[N]: "examples" (train + test), "train examples",
    "test examples", "classes", "effective classes" (see `effective_classes`),
    "label distance" (see `label_distance`).
  """
  counts = label_counts(data)
  return {
    "examples": counts.sum(axis=1),
    "train examples": np.asarray(data.train.count),
    "test examples": np.asarray(data.test.count),
    "classes": np.count_nonzero(counts, axis=1),
    "effective classes": effective_classes(counts),
    "label distance": label_distance(counts),
  }


def table(data: FederatedData) -> str:
  """The summary as text: minimum, median and maximum over the clients.

  Args:
    data: the federated data set.

  Returns:
    Lines of equal width, without a newline at the end.
  """
  return _lines(data.num_clients, summary(data))


def skew_summary(
  parts: Sequence[np.ndarray],
  groups: np.ndarray,
  features: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Per-client figures of a partition, by clusters of an embedding.

  Args:
    parts: each client's rows.
    groups: i[n], the cluster of each example (`data.embedding.clusters`), or
      any other integers >= 0.
    features: f[n, d], the embedding, or None.

  Returns:
    name -> f64[N] or i64[N]: "examples", "clusters", "effective clusters"
    (`diversity.hill`), "cluster distance" (total variation to all clients),
    and with features "Frechet distance" (`diversity.frechet`).
  """
  counts = diversity.group_counts(parts, groups)
  figures = {
    "examples": counts.sum(axis=1),
    "clusters": np.count_nonzero(counts, axis=1),
    "effective clusters": diversity.hill(counts),
    "cluster distance": diversity.divergence(counts),
  }
  if features is not None:
    figures["Frechet distance"] = diversity.frechet(features, parts)
  return figures


def skew_table(
  parts: Sequence[np.ndarray],
  groups: np.ndarray,
  features: np.ndarray | None = None,
) -> str:
  """`skew_summary` as text, and how many distinct clients it makes.

  The last line is beta of `diversity.decompose`, from 1 (all clients alike) to
  the number of clients.

  Args:
    parts, groups, features: as in `skew_summary`.

  Returns:
    Lines of equal width, without a newline at the end.
  """
  beta = diversity.decompose(diversity.group_counts(parts, groups)).beta
  table = _lines(len(parts), skew_summary(parts, groups, features))
  return f"{table}\n{'distinct clients':<20}{beta:>30.2f}"


def _lines(num_clients: int, figures: dict[str, np.ndarray]) -> str:
  head = f"{num_clients} clients"
  lines = [f"{head:<20}{'min':>10}{'median':>10}{'max':>10}"]
  for name, values in figures.items():
    form = ".2f" if values.dtype.kind == "f" else "g"
    three = (values.min(), np.median(values), values.max())
    lines.append(f"{name:<20}" + "".join(f"{v:>10{form}}" for v in three))
  return "\n".join(lines)


def plot_label_distribution(
  data: FederatedData,
  path: str | os.PathLike | None = None,
  ax=None,
  *,
  max_clients: int = 100,
):
  """Draws each client's examples as a bar, stacked by class.

  Args:
    data: the federated data set.
    path: where to write the picture (PNG, SVG, ...); None writes nothing.
    ax: matplotlib axes to draw on; None makes a figure.
    max_clients: of more clients, this many are drawn, evenly spaced by size.

  Returns:
    The matplotlib axes.
  """
  import matplotlib
  from matplotlib.figure import Figure  # no pyplot: no global state, no window
  from matplotlib.ticker import MaxNLocator

  counts = label_counts(data)
  num_clients, num_classes = counts.shape
  order = np.arange(num_clients)
  label = "client"
  if num_clients > max_clients:
    by_size = np.argsort(counts.sum(axis=1), kind="stable")
    pick = np.linspace(0, num_clients - 1, max_clients).round().astype(int)
    order = by_size[pick]
    label = f"{max_clients} of {num_clients} clients, by size"
  if ax is None:
    ax = Figure(figsize=(8, 4), layout="constrained").subplots()
  colours = matplotlib.colormaps["tab20" if num_classes > 10 else "tab10"]
  base = np.zeros(order.size)
  for k in range(num_classes):
    height = counts[order, k]
    ax.bar(
      np.arange(order.size),
      height,
      bottom=base,
      width=1.0,
      color=colours(k % colours.N),
      label=str(k),
    )
    base += height
  ax.set_xlabel(label)
  ax.set_ylabel("examples")
  ax.set_xlim(-0.5, order.size - 0.5)
  ax.xaxis.set_major_locator(MaxNLocator(integer=True))
  if num_classes <= 20:
    ax.legend(
      title="class",
      fontsize="small",
      ncols=1,
      loc="upper left",
      bbox_to_anchor=(1.0, 1.0),
    )
  if path is not None:
    ax.figure.savefig(path, dpi=120)
  return ax
