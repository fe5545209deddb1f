"""What `cellm` reports: verdicts, headlines, and where the masks are."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from fedjax_het.algorithms import flasc
from fedjax_het.algorithms._lora_parts import layout_of
from fedjax_het.core import rounds
from fedjax_het.core.types import Rows
from fedjax_het.models.lora import Adapted
from fedjax_het.training.arms import Arm
from fedjax_het.training.files import write_bytes_atomic
from fedjax_het.training.plots import format_bytes, png
from fedjax_het.training.report import markdown_table, plus_minus
from fedjax_het.training.stats import (
  Verdict,
  first_reach,
  judge,
  paired_interval,
)
from fedjax_het_experiments._cellm_arms import (
  DENSE,
  EARLY,
  FOURTH,
  GLOBAL,
  RANK4,
  SELECT,
  SIXTEENTH,
  UPLINK,
  WARM,
)
from fedjax_het_experiments._cellm_tasks import Task
from fedjax_het_experiments._comparison import Rate
from fedjax_het_experiments._dealing import deal
from fedjax_het_experiments._setting import Setting

_SPARSE_RIVALS = (EARLY, WARM, SELECT)


class Masks(NamedTuple):
  """Densities of the down mask of one run.

  names: of the L matrices;  rounds: i64[E];  density: f64[E, L].
  """

  names: tuple[str, ...]
  rounds: np.ndarray
  density: np.ndarray


def verdicts(arms: Mapping[str, Arm]) -> list[Verdict]:
  """What the runs say about the claims, in pairs of seeds."""
  seeds = len(arms[DENSE].final)

  def gap(a, b):
    return paired_interval(100 * arms[a].last_three, 100 * arms[b].last_three)

  def row(claim, criterion, found, outcome, measured=None):
    text = measured or f"{found.mean:+.2f} points"
    return Verdict(claim, criterion, text, found, seeds, outcome)

  def at_least(claim, a, b, margin):
    found = gap(a, b)
    outcome = judge(found, at_least=margin)
    return row(claim, f"difference >= {margin:+g}: PASS", found, outcome)

  small = gap(FOURTH, RANK4)
  null = "PASS" if small.low > 0 else judge(small, null_within=1.0)
  tenth = gap(SIXTEENTH, DENSE)
  sent = [float(arms[a].sent_bytes[:, -1].mean()) for a in (DENSE, SIXTEENTH)]
  fewer = sent[0] / sent[1]
  equal = fewer >= 10 and tenth.low >= -1
  return [
    at_least("FLASC 1/4 is as good as dense LoRA", FOURTH, DENSE, -1.0),
    at_least("FLASC 1/4 beats SparseAdapter, early mask", FOURTH, EARLY, 2.0),
    at_least("FLASC 1/4 beats SparseAdapter, warm mask", FOURTH, WARM, 2.0),
    row(
      "FLASC 1/4 beats a dense adapter of rank 4",
      "difference > 0: PASS; within 1 point of 0: NULL, as expected",
      small,
      null,
    ),
    row(
      "10 times fewer bytes than LoRA at equal utility (FLASC 1/16)",
      "at least 10 times fewer, and difference >= -1: PASS",
      tenth,
      "PASS" if equal else "FAIL",
      f"{fewer:.1f} times fewer, {tenth.mean:+.2f} points",
    ),
  ]


def masks_over_rounds(
  setting: Setting,
  task: Task,
  adapted: Adapted,
  rates: Mapping[str, Rate],
  seeds: Sequence[int],
  *,
  batch_size: int,
  epochs: int,
) -> dict[str, Masks]:
  """Where FLASC's global top-k goes, in one more run for each density.

  Of the first seed, with the rates that tuning chose for FLASC's global arm.
  With a share for every matrix there is nothing to see: all have the same.
  """
  data = deal(setting, seeds[:1])
  train, test = (
    Rows(*(leaf[0] for leaf in part)) for part in (data.train, data.test)
  )
  data = data._replace(train=train, test=test)
  layout = layout_of(adapted, include_full=False)
  ends = np.cumsum(layout.pruned_sizes)
  client_rate, server_rate = rates[GLOBAL]
  found = {}
  for name, density in ((GLOBAL, 1 / 4), ("FLASC 1/16, global", 1 / 16)):
    algorithm = flasc(
      adapted,
      optimizer=optax.sgd(client_rate, momentum=0.9),
      batch_size=batch_size,
      epochs=epochs,
      server_optimizer=optax.adam(server_rate),
      down_density=density,
      up_density=density,
      scope="global",
      include_full=False,
      loss=task.loss,
    )
    select = setting.select(setting.cohort_size, setting.rounds)
    one = rounds.make_round(algorithm, select, deadline=setting.deadline)
    step = jax.jit(one)
    state = jax.jit(
      lambda key, a=algorithm, s=select: rounds.init_state(
        a, key, setting.num_clients, s
      )
    )(jax.random.key(seeds[0]))
    rows = []
    for done in range(setting.rounds + 1):
      mask = np.asarray(state.server.masks[0])
      parts = np.split(mask[: ends[-1]], ends[:-1])
      rows.append([part.mean() for part in parts])
      if done < setting.rounds:
        state, _ = step(state, data)
    names = [name[5:] for name in layout.names[: layout.prunable]]
    found[name] = Masks(tuple(names), np.arange(len(rows)), np.array(rows))
  return found


def notes(
  arms: Mapping[str, Arm],
  rates: Mapping[str, Rate],
  masks: Mapping[str, Masks],
  folder: pathlib.Path,
  *,
  about: str,
  base_bytes: int,
  target: float,
  tune_seeds: int,
) -> list[str]:
  """The paragraphs below the tables; also writes mask_density.png.

  Args:
    arms: by name.
    rates: that tuning chose.
    masks: of `masks_over_rounds`.
    folder: of the report; exists.
    about: the task in a sentence or two.
    base_bytes: what every client receives once.
    target: accuracy in [0, 1] at which bytes are compared.
    tune_seeds: how many seeds tuning looked at.
  """
  save_masks(folder / "mask_density.png", masks)
  chosen = "; ".join(
    f"{name}: {client:g}, {server:g}"
    for name, (client, server) in rates.items()
  )
  return [
    about
    + f" The base, {format_bytes(base_bytes)}, goes to every client once and "
    "is not in the bytes of the tables, which count every message of every "
    "round with its positions.",
    "## The figure of the verdicts, and its price\n\n" + price_table(arms),
    "Means of the last three evaluations ± standard deviation over seeds.",
    "## Published and measured\n\n" + headline_table(arms, target),
    f"Bytes both ways until the global model first has {100 * target:.1f} %, "
    "means over the seeds in which both arms get there.",
    "## Where a global top-k goes\n\n" + mask_table(masks),
    "Share of each matrix in the down mask of one seed (not tuned apart). "
    "Before round 1 every B is zero: a global mask keeps none of it, and one "
    "that is frozen then leaves the adapters dead. With a share for every "
    "matrix, as in the other arms, all rows are the density itself.",
    "![Share of each matrix in the down mask against rounds](mask_density.png)",
    "Clients' and server's rates, the best of three pairs for every arm by the "
    f"clients' own test splits on {tune_seeds} tuning seeds (0: the second): "
    f"{chosen}.",
  ]


def price_table(arms: Mapping[str, Arm]) -> str:
  """Accuracy, and how many times fewer bytes than dense LoRA's, both ways."""
  rows = []
  dense = arms[DENSE].sent_bytes[:, -1].mean()
  for arm in arms.values():
    share = arm.sent_bytes[:, -1].mean() / dense
    rows.append(
      [arm.name, plus_minus(100 * arm.last_three), f"{1 / share:.1f}"]
    )
  return markdown_table(
    ["arm", "accuracy (%)", "times fewer bytes than dense LoRA"], rows
  )


def headline_table(arms: Mapping[str, Arm], target: float) -> str:
  """The paper's factors of traffic beside those at the target."""

  def factor(rival, ours):
    spent = [
      first_reach(arms[a].sent_bytes, arms[a].accuracy, target)
      for a in (rival, ours)
    ]
    both = np.isfinite(spent[0]) & np.isfinite(spent[1])
    text = "-"
    if both.any():
      text = f"{(spent[0][both] / spent[1][both]).mean():.1f} times"
    return [f"{both.sum()} of {both.size}", text]

  rows = [
    ["than dense LoRA", "up to 10 times", ours, *factor(DENSE, ours)]
    for ours in (FOURTH, GLOBAL, SIXTEENTH, UPLINK)
  ]
  rows += [
    [f"than {rival}", "5 times", FOURTH, *factor(rival, FOURTH)]
    for rival in _SPARSE_RIVALS
  ]
  rows.append([f"than {RANK4}", "not compared", FOURTH, *factor(RANK4, FOURTH)])
  return markdown_table(
    ["fewer bytes", "published", "arm", "seeds", "measured"], rows
  )


def mask_table(masks: Mapping[str, Masks]) -> str:
  """Density of each matrix before the first round, after it, and at the end."""
  first = next(iter(masks.values()))
  heads, columns = [], []
  for name, mask in masks.items():
    for at in (0, 1, -1):
      heads.append(f"{name}, round {mask.rounds[at]}")
      columns.append(mask.density[at])
  rows = [
    [matrix, *(f"{100 * column[i]:.1f} %" for column in columns)]
    for i, matrix in enumerate(first.names)
  ]
  return markdown_table(["matrix", *heads], rows)


def save_masks(path: pathlib.Path, masks: Mapping[str, Masks]) -> None:
  """Density of every matrix against rounds, a panel a run."""
  from matplotlib.figure import Figure

  tall = len(next(iter(masks.values())).names)
  figure = Figure((5.2 * len(masks), 0.22 * tall + 1.6), 150)
  figure.set_layout_engine("constrained")
  panels = figure.subplots(1, len(masks), squeeze=False, sharey=True)[0]
  for axes, (name, mask) in zip(panels, masks.items(), strict=True):
    image = axes.imshow(
      100 * mask.density.T,
      aspect="auto",
      interpolation="nearest",
      cmap="viridis",
      vmin=0,
    )
    axes.set_title(name, loc="left")
    axes.set_xlabel("rounds")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axes, label="kept (%)")
  panels[0].set_yticks(range(tall), next(iter(masks.values())).names)
  write_bytes_atomic(path, png(figure))
