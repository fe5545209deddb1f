"""HideNseek: does a sign supermask beat {0, 1}, and what do its bits buy?

The claims of arXiv:2206.04385 against the rivals that they name: FedAvg, FedAvg
on the same SynFlow mask, a {0, 1} supermask on the same weights with the same
uplink, and FedPM.  Every arm tries four learning rates on tuning seeds, then
runs on fresh seeds.

Command:
  fedjax-het hide_n_seek --flagfile=hide_n_seek.fashion_mnist.dirichlet
Minutes: 10 on two idle cores (measured: experiments/README.md).
Expected: uplink exactly as claimed, 160 times under FedAvg; signs and {0, 1}
tied at 80.0 %; both 4 to 5 points under FedAvg's 84.6 %.
"""

import functools
import time

import jax
import numpy as np
import optax
from absl import flags

from fedjax_het import models
from fedjax_het.algorithms import (
  DOWNLINKS,
  fed_avg,
  fed_pm,
  hide_n_seek,
  masked_fed_avg,
)
from fedjax_het.data import sources
from fedjax_het.masks.at_init import prune_at_init
from fedjax_het.masks.budgets import check_density
from fedjax_het.masks.tree import num_maskable
from fedjax_het.training.report import write_report
from fedjax_het.training.stats import (
  Interval,
  Verdict,
  first_reach,
  judge,
  mean_interval,
  paired_interval,
)
from fedjax_het_experiments import _flags
from fedjax_het_experiments._comparison import Method, compare
from fedjax_het_experiments._setting import from_flags

_DENSITY = flags.DEFINE_float(
  "hide_n_seek_density",
  0.2,
  "Share of the weights that survive pruning.",
  lower_bound=0.0,
  upper_bound=1.0,
)
_DOWNLINK = flags.DEFINE_enum(
  "hide_n_seek_downlink",
  "count",
  DOWNLINKS,
  "What the sign arms send down: the mean in 32 bits a weight, the count of "
  "votes (exact, one vote a client, a few bits), or the majority (1 bit).",
)
_TARGET = flags.DEFINE_float(
  "hide_n_seek_target",
  0.75,
  "Accuracy for rounds-to-target.",
  lower_bound=0.0,
  upper_bound=1.0,
)

DENSE, MASKED = "FedAvg", "FedAvg on mask"
SIGN, BINARY, FEDPM = "sign {-1,+1}", "mask {0,1}", "FedPM"
_HIDDEN = (128, 64)


def methods(model, input_shape) -> list[Method]:
  """The arms, each with four learning rates around its pilot's best."""
  pruning = prune_at_init(model, input_shape, density=_DENSITY.value)
  local = {
    "batch_size": _flags.BATCH_SIZE.value,
    "epochs": _flags.LOCAL_EPOCHS.value,
  }
  sgd = functools.partial(optax.sgd, momentum=0.9)

  def signs(values):
    return lambda rate: hide_n_seek(
      model,
      pruning,
      optimizer=optax.adam(rate),
      values=values,
      downlink=_DOWNLINK.value,
      cohort_size=_flags.COHORT_SIZE.value,
      **local,
    )

  return [
    Method(
      DENSE,
      lambda rate: fed_avg(model, optimizer=sgd(rate), **local),
      (0.003, 0.01, 0.03, 0.1),
    ),
    Method(
      MASKED,
      lambda rate: masked_fed_avg(model, pruning, optimizer=sgd(rate), **local),
      (0.003, 0.01, 0.03, 0.1),
    ),
    Method(SIGN, signs((-1, 1)), (0.025, 0.05, 0.1, 0.2)),
    Method(BINARY, signs((0, 1)), (0.025, 0.05, 0.1, 0.2)),
    Method(
      FEDPM,
      lambda rate: fed_pm(model, optimizer=optax.adam(rate), **local),
      (0.025, 0.05, 0.1, 0.2),
    ),
  ]


def verdicts(
  arms, *, density: float, weights: int, cohort_size: int, target: float
):
  """What the runs say about each claim.

  Args:
    arms: name -> Arm.
    density: d, the share of the weights that the mask keeps.
    weights: P, the maskable weights of the network.
    cohort_size: C.
    target: accuracy for rounds-to-target.
  """
  sign, dense = arms[SIGN], arms[DENSE]
  seeds = len(sign.final)
  kept = round(density * weights)
  messages = sign.rounds[-1] * cohort_size
  bits = np.unique(8 * sign.up_bytes[:, -1] / messages)
  versus = dense.up_bytes[:, -1] / sign.up_bytes[:, -1]
  exact = bits.size == 1 and bits[0] == 8 * -(-kept // 8)
  duel = paired_interval(100 * sign.final, 100 * arms[BINARY].final)
  mask = paired_interval(100 * sign.final, 100 * arms[MASKED].final)
  gap = paired_interval(100 * sign.final, 100 * dense.final)
  return [
    Verdict(
      "uplink is one bit a surviving weight",
      f"bits of the encoded message = {kept} signs, in whole bytes",
      f"{bits[0]:.0f} bits, {versus.mean():.1f}x under FedAvg",
      None,
      seeds,
      "PASS" if exact else "FAIL",
    ),
    Verdict(
      "signs beat a {0, 1} mask at equal bits",
      "difference > 0: PASS; within 2 points of 0: NULL, as expected",
      f"{duel.mean:+.2f} points",
      duel,
      seeds,
      "PASS" if duel.low > 0 else judge(duel, null_within=2.0),
    ),
    Verdict(
      "close to FedAvg on the same mask, at 1/32 of its uplink",
      "at most 4 points below",
      f"{mask.mean:+.2f} points",
      mask,
      seeds,
      judge(mask, at_least=-4.0),
    ),
    Verdict(
      "close to dense FedAvg",
      "at most 5 points below",
      f"{gap.mean:+.2f} points",
      gap,
      seeds,
      judge(gap, at_least=-5.0),
    ),
    _to_target(
      "39.7 % less traffic to the target than FedAvg",
      "bytes, both ways",
      target,
      0.603,
      _ratio(arms, lambda arm: arm.sent_bytes, target),
      seeds,
    ),
    _to_target(
      "46.8 % less training time to the target than FedAvg",
      "rounds",
      target,
      0.532,
      _ratio(arms, lambda arm: arm.rounds, target),
      seeds,
    ),
  ]


def _ratio(arms, cost, target) -> Interval:
  """Cost to the target, sign over FedAvg; NaN if a seed never reaches it."""
  sign, dense = (
    first_reach(cost(arms[name]), arms[name].accuracy, target)
    for name in (SIGN, DENSE)
  )
  with np.errstate(invalid="ignore"):
    return mean_interval(np.where(np.isinf(sign), np.nan, sign / dense))


def _to_target(claim, unit, target, most, ratio, seeds) -> Verdict:
  reached = np.isfinite(ratio.mean)
  return Verdict(
    claim,
    f"{unit} to {100 * target:g} %: at most {most} of FedAvg's",
    f"{ratio.mean:.3g} of FedAvg's" if reached else "a seed never reaches it",
    ratio if reached else None,
    seeds,
    judge(ratio, at_most=most),
  )


def main(argv: list[str]) -> None:
  del argv
  started = time.monotonic()
  dataset = sources.load(_flags.DATASET.value, _flags.DATA_DIR.value)
  input_shape = dataset.train_x.shape[1:]
  options = {"hidden": _HIDDEN} if _flags.MODEL.value == "mlp" else {}
  model = models.build(
    _flags.MODEL.value,
    input_shape,
    dataset.num_classes,
    use_bias=False,
    **options,
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  check_density(shapes, _DENSITY.value)  # before an arm without a mask trains
  setting = from_flags(dataset, model, (_DENSITY, _DOWNLINK))
  arms, rates = compare(
    setting,
    methods(model, input_shape),
    seeds=_flags.SEEDS.value,
    tune_seeds=_flags.TUNE_SEEDS.value,
  )
  write_report(
    setting.workdir,
    f"HideNseek on {dataset.name}, {_flags.PARTITION.value}",
    arms,
    verdicts(
      {arm.name: arm for arm in arms},
      density=_DENSITY.value,
      weights=num_maskable(shapes),
      cohort_size=setting.cohort_size,
      target=_TARGET.value,
    ),
    seconds=time.monotonic() - started,
    notes=[
      "Learning rates, the best of four for every arm by the clients' own test "
      f"splits on {_flags.TUNE_SEEDS.value} tuning seeds (0: the third): "
      + ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
      + "."
    ],
    target=_TARGET.value,
  )


if __name__ == "__main__":
  _flags.run(main, local_epochs=5)
