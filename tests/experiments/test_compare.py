"""`compare`: the shelf with traced hyper-parameters, the report, the binary."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_het.algorithms import REGISTRY
from fedjax_het.core import rounds
from fedjax_het.core.errors import UserError
from fedjax_het.selection import uniform
from fedjax_het.training.arms import Arm
from fedjax_het_experiments import _compare_report, _shelf
from fedjax_het_experiments._compare_report import Column

PROBLEM = _shelf.Problem(
  tiny.mlp(), tiny.CLIENTS, batch_size=8, epochs=1, cohort_steps=6
)
SMALL = [
  "--dataset=digits",
  "--num_clients=12",
  "--cohort_size=4",
  "--rounds=4",
  "--eval_every=2",
  "--seeds=2",
  "--algorithms=fed_avg,centralised,fine_tuned",
]


@pytest.mark.parametrize("name", _shelf.TUNED)
def test_every_method_takes_traced_hyper_parameters(name):
  """And each tries six trials, of which no two are alike."""
  (method,) = _shelf.methods([name], PROBLEM)
  assert len(set(method.rates)) == 6
  assert method.judged_by == REGISTRY[name].judged_by

  def one_round(rate, key, data):
    algorithm = method.build(rate)
    state = rounds.init_state(algorithm, key, tiny.CLIENTS)
    return rounds.make_round(algorithm, uniform(3))(state, data)[0].server

  jax.eval_shape(
    one_round, jnp.asarray(method.rates[0]), jax.random.key(0), tiny.data()
  )


def test_names_are_checked():
  with pytest.raises(UserError, match="did you mean 'fed_prox'"):
    _shelf.methods(["fed_prx"], PROBLEM)
  with pytest.raises(UserError, match="fed_pm has no tuning grid"):
    _shelf.methods(["fed_pm"], PROBLEM)
  with pytest.raises(UserError, match="twice"):
    _shelf.methods(["fed_avg", "moon", "fed_avg"], PROBLEM)


def _arm(name, final, own):
  accuracy = np.stack([np.full(len(final), 0.1), final], axis=1)
  sent = np.ones((len(final), 1)) * np.array([[1e6, 2e6]])
  return Arm(
    name,
    np.array([1, 2]),
    accuracy,
    sent,
    2 * sent,
    np.asarray(own)[:, None] * np.ones((1, 20)),
    seconds=sent / 1e5,
    joules=sent,
  )


def test_the_report_is_what_was_measured(tmp_path):
  base = np.array([0.5, 0.6, 0.7])
  columns = [
    Column(
      spec,
      {
        "fed_avg": _arm("fed_avg", base, base - 0.1),
        "scaffold": _arm("scaffold", base + 0.1 + noise, base - 0.1),
        "fine_tuned": _arm("fine_tuned", base + 0.2, base + 0.2),
        "centralised": _arm("centralised", base + 0.25, base * 0),
      },
      {"fed_avg": 0.1, "scaffold": 0.2, "fine_tuned": 0.4, "centralised": 1.0},
    )
    for spec, noise in (("iid", np.zeros(3)), ("shard:2", [-0.2, 0.1, 0.1]))
  ]
  path = _compare_report.write(
    tmp_path, "T", columns, seconds=1.0, notes=["N"], target=0.6
  )
  first, second, cost, times, _ = (
    part.split("\n## ")[0]
    for part in path.read_text().split("## ", 1)[1].split("\n## ")
  )
  assert "| fed_avg | 60.0 ± 24.8 | 60.0 ± 24.8 |" in first
  # three equal differences have no spread; three unequal ones are not sure
  assert "| scaffold | 70.0 ± 24.8 (**+10.0**) | 70.0 " in first
  assert "(+10.0) |" in first
  assert "centralised | 85.0" in first and "fine_tuned" not in first
  assert "| fed_avg | 50.0 ± 24.8 (**-30.0**)" in second
  assert "centralised" not in second and "| fine_tuned | 80.0" in second
  assert "| fed_avg | 2 MB | 4 MB | 20 s | 2 MJ |" in cost
  # 0.5 never gets there; 0.6 and 0.7 do at the end, after 20 s
  assert "| fed_avg | 20 s (2 of 3) | 20 s (2 of 3) |" in times
  assert "| fine_tuned | 20 s | 20 s |" in times
  runs = json.loads((tmp_path / "results.json").read_text())["runs"]
  assert len(runs) == 8
  assert runs[0]["accuracy"] == [0.5, 0.6, 0.7]
  assert runs[2]["accuracy"] is None and runs[3]["client_mean"] is None
  assert (tmp_path / "compare.png").stat().st_size > 10_000


def _run(env, *flags):
  return subprocess.run(
    [sys.executable, "-m", "fedjax_het_experiments", "compare", *flags],
    env=env,
    capture_output=True,
    text=True,
    timeout=900,
  )


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--algorithms=fed_avgg"], "did you mean 'fed_avg'"),
    (["--partitions=dirichlet"], "needs a value for alpha"),
    (["--partitions=iid", "--partitions=iid"], "given twice"),
    (["--fleet=log_normal"], "did you mean 'lognormal'"),
    (["--availability=diurnal"], "write diurnal:SHARE"),
    (["--selection=ort"], "did you mean 'oort'"),
  ],
)
def test_mistakes_come_before_the_training(
  source_env, tmp_path, flags, message
):
  done = _run(source_env, "--dataset=digits", f"--workdir={tmp_path}", *flags)
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and done.stderr.count("\n") == 1
  assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.slow
def test_a_small_comparison_resumes_and_ends_the_same(source_env, tmp_path):
  flags = [*SMALL, f"--workdir={tmp_path}", "--selection=oort", "--deadline=3"]
  done = _run(source_env, *flags)
  assert done.returncode == 0, done.stderr
  first = json.loads((tmp_path / "results.json").read_text())["runs"]
  assert len(first) == 6  # three methods, two partitions
  for run in first:
    figure = run["accuracy"] or run["client_mean"]
    assert len(figure) == 2 and all(0 <= value <= 1 for value in figure)
  assert _run(source_env, *flags).returncode == 2  # results are in the way
  again = _run(source_env, *flags, "--resume")
  assert again.returncode == 0, again.stderr
  second = json.loads((tmp_path / "results.json").read_text())["runs"]
  assert second == first
