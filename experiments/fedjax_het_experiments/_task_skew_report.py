"""Verdicts and tables of `task_skew`."""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console

from fedjax_het.data.embedding import overlap
from fedjax_het.data.tasks import TASKS
from fedjax_het.training.files import (
  storage_errors,
  write_json_atomic,
  write_text_atomic,
)
from fedjax_het.training.report import (
  markdown_table,
  run_facts,
  summary_markdown,
  verdict_table,
)
from fedjax_het.training.stats import (
  Interval,
  Verdict,
  bootstrap_interval,
  judge,
  mean_interval,
)
from fedjax_het_experiments._task_skew_pictures import save_losses, save_ratios
from fedjax_het_experiments._task_skew_runs import (
  EMBEDDING,
  IID,
  LABEL,
  Outcome,
)

MARGIN = 0.05  # a difference of less than 5 % is none
# declared before the first run of the experiment; of all others, NULL
EXPECTED = {"classification": "FAIL (label skew is worse)"}


def paired_ratio(
  a: np.ndarray, b: np.ndarray, interval=bootstrap_interval
) -> Interval:
  """Geometric mean of a / b over seeds, with the interval of its logarithm.

  Args:
    a, b: f[S], positive, of the same seeds.
    interval: of values f[S], `bootstrap_interval` or `mean_interval`.
  """
  log = interval(np.log(np.asarray(a, np.float64)) - np.log(b))
  return log._replace(
    mean=math.exp(log.mean), low=math.exp(log.low), high=math.exp(log.high)
  )


def verdicts(
  outcomes: Mapping[str, Outcome], alphas: Sequence[float]
) -> list[Verdict]:
  """Whether skew over clusters costs more than skew over labels, by task."""
  out = []
  for task, outcome in outcomes.items():
    for alpha in alphas:
      ratio = paired_ratio(*_skewed(outcome, alpha))
      passed = judge(ratio, at_least=1 + MARGIN) == "PASS"
      about_0 = ratio._replace(low=ratio.low - 1, high=ratio.high - 1)
      out.append(
        Verdict(
          f"{task}, alpha {alpha:g}: embedding skew costs more",
          f"loss over label skew's: >= {1 + MARGIN:g} PASS, within {MARGIN:g} "
          f"of 1 NULL, else FAIL; expected {EXPECTED.get(task, 'NULL')}",
          f"{ratio.mean:.3f}",
          ratio,
          ratio.seeds,
          "PASS" if passed else judge(about_0, null_within=MARGIN),
        )
      )
  return out


def write_report(
  workdir: pathlib.Path,
  title: str,
  outcomes: Mapping[str, Outcome],
  labels: Sequence[np.ndarray],
  alphas: Sequence[float],
  *,
  seconds: float,
  notes: Sequence[str],
) -> None:
  """Writes summary.md, results.json and two PNGs, and prints the verdicts.

  Args:
    workdir: where to.
    title: of the summary.
    outcomes: task -> what it gave.
    labels: for each seed, the labels of its pool.
    alphas: of the skewed partitions.
    seconds: how long it took.
    notes: paragraphs below the tables.
  """
  judged = verdicts(outcomes, alphas)
  facts = run_facts(seconds=seconds)
  with storage_errors(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
  pairs = [
    (f"{task}, alpha {alpha:g}", *_skewed(outcome, alpha))
    for task, outcome in outcomes.items()
    for alpha in alphas
  ]
  ratios = [(name, a / b, paired_ratio(a, b)) for name, a, b in pairs]
  pictures = [
    save_ratios(workdir / "ratio.png", ratios, MARGIN),
    save_losses(workdir / "loss.png", outcomes),
  ]
  student = "; ".join(
    f"{name}: {_text(paired_ratio(a, b, mean_interval))}"
    for name, a, b in pairs
  )
  sections = [
    "Ratios are geometric means over seeds; intervals are paired bootstraps "
    "(BCa).  Of few seeds these are too narrow; Student's, on the logarithm: "
    f"{student}.",
    "## What each partition costs",
    markdown_table(*loss_rows(outcomes)),
    "Held-out data, last evaluation; means over seeds with 95 % intervals "
    "(Student); the rate is that of the clients' Adam.  Over IID: the ratio of "
    "losses.  Where neither skew costs anything over IID, a NULL says little.",
    "## How heterogeneous the partitions are",
    markdown_table(*meter_rows(outcomes)),
    "Means over seeds.  Classes and clusters: effective number within a "
    "client (Hill, order 1); beta: effective number of distinct clients, by "
    "labels and by clusters, from 1 to the number of clients.  Frechet: "
    "squared distance of a client's features to all clients', over the total "
    "variance of the features.  Equal alpha is not quite equal skew: clusters "
    "differ in size, and what has run out is replaced.",
    "## Whether the tasks agree on what is alike",
    markdown_table(*overlap_rows(outcomes, labels)),
    "Normalised mutual information of the clusters of two tasks, and of "
    "clusters and labels: 0 independent, 1 the same; means over seeds.",
    *notes,
  ]
  text = summary_markdown(title, [], judged, facts, pictures, sections)
  write_text_atomic(workdir / "summary.md", text)
  write_json_atomic(
    workdir / "results.json", {"facts": facts, "points": _points(outcomes)}
  )
  console = Console()
  console.print(verdict_table(judged, title))
  console.print(
    f"report: {workdir / 'summary.md'}", markup=False, soft_wrap=True
  )


def loss_rows(outcomes: Mapping[str, Outcome]):
  """Headings and rows: what each partition cost."""
  headings = ("task", "partition", "rate", "loss", "over IID", "score", "of")
  rows = []
  for task, outcome in outcomes.items():
    iid = outcome.curves[IID].loss[:, -1]
    for arm, curve in outcome.curves.items():
      last = curve.loss[:, -1]
      rows.append(
        [
          task,
          arm,
          f"{curve.rate:g}",
          str(mean_interval(last)),
          "1" if arm == IID else _text(paired_ratio(last, iid)),
          f"{curve.score[:, -1].mean():.3f}",
          TASKS[task].score,
        ]
      )
    central = str(mean_interval(outcome.embedder))
    rows.append([task, "(embedder, central)", "-", central, "-", "-", "-"])
  return headings, rows


def meter_rows(outcomes: Mapping[str, Outcome]):
  """Headings and rows: the meters of each partition."""
  first = next(iter(outcomes.values())).curves[IID].meters
  rows = [
    [task, arm, *(f"{values.mean():.3g}" for values in curve.meters.values())]
    for task, outcome in outcomes.items()
    for arm, curve in outcome.curves.items()
  ]
  return ("task", "partition", *first), rows


def overlap_rows(outcomes: Mapping[str, Outcome], labels: Sequence[np.ndarray]):
  """Headings and rows: mean NMI between tasks, and with the labels."""
  groups = {"labels": labels} | {t: o.groups for t, o in outcomes.items()}
  value = {
    (a, b): np.mean(
      [overlap(x, y).nmi for x, y in zip(groups[a], groups[b], strict=True)]
    )
    for a, b in itertools.combinations(groups, 2)
  }
  rows = [
    [a, *(f"{value[a, b]:.2f}" if (a, b) in value else "" for b in outcomes)]
    for a in list(groups)[:-1]
  ]
  return ("", *outcomes), rows


def _skewed(outcome, alpha):
  """Last losses f64[S] under embedding skew and under label skew."""
  return [
    outcome.curves[f"{kind} {alpha:g}"].loss[:, -1]
    for kind in (EMBEDDING, LABEL)
  ]


def _text(ratio):
  if not math.isfinite(ratio.high - ratio.low):
    return f"{ratio.mean:.3f}"
  return f"{ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _points(outcomes):
  return [
    {
      "task": task,
      "partition": arm,
      "rate": curve.rate,
      "rounds": curve.rounds.tolist(),
      "loss": curve.loss.tolist(),
      "score": curve.score.tolist(),
      "meters": {k: v.tolist() for k, v in curve.meters.items()},
    }
    for task, outcome in outcomes.items()
    for arm, curve in outcome.curves.items()
  ]
