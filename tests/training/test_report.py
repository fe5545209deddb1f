"""Reports: arms from records, summary.md, plots."""

import io
import re

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from fedjax_het.core.errors import UserError
from fedjax_het.training import plots, report
from fedjax_het.training.arms import Arm, arm_from_records
from fedjax_het.training.stats import Interval, Verdict, mean_interval

RNG = np.random.default_rng(2)
VERDICTS = [
  Verdict("a | b", "> 0", 0.125, Interval(0.125, 0.1, 0.15, 5), 5, "PASS"),
  Verdict("bits", "= 1", "1 bit", None, 5, "FAIL"),
  Verdict("[red]vote[/red]", "nil", 0.0, None, 1, "NULL"),
]


def make_records(accuracy, clients, num_seeds):
  """Ten rounds, evaluated at 5 and 10; round r sends r bytes up, 2 r down."""

  def seeds(value):
    return value if num_seeds is None else [value] * num_seeds

  records = []
  for r in range(1, 11):
    records.append(
      {"round": r, "up_bytes": seeds(r), "down_bytes": seeds(2 * r)}
    )
    if r % 5 == 0:
      e = r // 5 - 1
      records.append(
        {"round": r, "eval/accuracy": accuracy[e]}
        | {"eval/client_accuracy": clients[e]}
      )
  return records


def make_arm(name, seeds=4, evaluations=6, clients=25):
  sent = np.cumsum(RNG.uniform(1e5, 2e5, (seeds, evaluations)), axis=1)
  return Arm(
    name,
    np.arange(1, evaluations + 1) * 10,
    np.sort(RNG.uniform(0.2, 0.9, (seeds, evaluations)), axis=1),
    sent,
    3 * sent,
    RNG.uniform(0, 1, (seeds, clients)),
  )


def test_an_arm_of_seeds_in_one_run():
  accuracy = RNG.uniform(size=(2, 3)).tolist()  # [E][S]
  clients = RNG.uniform(size=(2, 3, 7)).tolist()
  arm = arm_from_records("x", make_records(accuracy, clients, 3))
  np.testing.assert_array_equal(arm.rounds, [5, 10])
  np.testing.assert_array_equal(arm.accuracy, np.transpose(accuracy))
  np.testing.assert_array_equal(arm.up_bytes, [[15, 55]] * 3)
  np.testing.assert_array_equal(arm.sent_bytes, [[45, 165]] * 3)
  np.testing.assert_array_equal(arm.client_accuracy, clients[-1])
  np.testing.assert_array_equal(arm.final, accuracy[-1])


def test_the_last_three_evaluations_as_mean_and_deviation():
  accuracy = np.array([[0.9, 0.1, 0.2, 0.3], [0.9, 0.4, 0.4, 0.4]])
  arm = Arm("x", np.arange(4), accuracy)
  np.testing.assert_allclose(arm.last_three, [0.2, 0.4])
  # deviation over seeds: |0.2 - 0.4| / sqrt(2) = 0.1414
  assert report.plus_minus(100 * arm.last_three) == "30.00 ± 14.14"
  assert report.plus_minus(np.array([1.5])) == "1.50"


def test_seeds_in_separate_runs_are_joined():
  runs = [
    make_records([0.1 * s, 0.2 * s], RNG.uniform(size=(2, 7)).tolist(), None)
    for s in (1, 2, 3)
  ]
  arm = arm_from_records("x", *runs)
  np.testing.assert_allclose(arm.accuracy, [[0.1, 0.2], [0.2, 0.4], [0.3, 0.6]])
  assert arm.client_accuracy.shape == (3, 7)
  np.testing.assert_array_equal(arm.down_bytes, [[30, 110]] * 3)


def test_worst_decile_is_the_loop():
  arm = make_arm("x", clients=25)
  expected = [np.mean(sorted(row)[:3]) for row in arm.client_accuracy.tolist()]
  np.testing.assert_allclose(arm.worst_decile, expected)


def test_what_was_not_recorded_is_none():
  records = [{"round": 1, "loss": 1.0}, {"round": 1, "eval/accuracy": 0.5}]
  arm = arm_from_records("x", records)
  assert arm.sent_bytes is arm.client_accuracy is arm.worst_decile is None
  with pytest.raises(UserError, match="did you mean 'eval/accuracy'"):
    arm_from_records("x", records, accuracy="eval/acuracy")
  other = [{"round": 2, "eval/accuracy": 0.5}]
  with pytest.raises(ValueError, match="different rounds"):
    arm_from_records("x", records, other)


def test_a_report_is_written_whole(tmp_path):
  out = io.StringIO()
  arms = [make_arm("HideNseek"), make_arm("FedAvg", seeds=1)]
  path = report.write_report(
    tmp_path / "r",
    "Title",
    arms,
    VERDICTS,
    command="fedjax-het x --rounds=60",
    seconds=173,
    notes=["Tuned equally."],
    target=0.8,
    console=Console(file=out, width=120),
  )
  text = path.read_text()
  assert text.startswith("# Title\n")
  assert "- command: `fedjax-het x --rounds=60`" in text
  assert "- duration: 2:53" in text and "Tuned equally." in text
  assert "jax " in text and "cpu" in text
  linked = re.findall(r"\]\((.*)\)", text)
  assert sorted([*linked, "summary.md"]) == sorted(
    p.name for p in path.parent.iterdir()
  )
  assert "overview.png" in linked and len(linked) == 4
  for name in linked:
    pixels = matplotlib.image.imread(path.parent / name)
    assert pixels.shape[0] == 630 and pixels.std() > 0.05
  shown = out.getvalue()
  assert "[red]vote[/red]" in shown  # text, not markup
  assert all(v.outcome in shown for v in VERDICTS)
  assert str(path) in shown


def test_tables_hold_the_numbers():
  arm = make_arm("x")
  headings, (row,) = report.arm_rows([arm])
  cell = dict(zip(headings, row, strict=True))
  mean, low, high, *_ = mean_interval(100 * arm.accuracy[:, -1])
  assert cell["accuracy (%)"] == f"{mean:.1f} [{low:.1f}, {high:.1f}]"
  assert cell["sent up"] == plots.format_bytes(arm.up_bytes[:, -1].mean())
  text = report.summary_markdown("t", [arm], VERDICTS, {"k": "v"})
  tables = [line for line in text.splitlines() if line.startswith("|")]
  first, second = tables[:5], tables[5:]
  assert first[2] == r"| a \| b | > 0 | 0.125 | [0.1, 0.15] | 5 | PASS |"
  assert first[3] == "| bits | = 1 | 1 bit | - | 5 | FAIL |"
  assert len({line.count("|") for line in second}) == 1


def test_equal_results_give_equal_files(tmp_path):
  arm = make_arm("x")
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    plots.save_plots(tmp_path / name, [arm])
  for path in (tmp_path / "a").iterdir():
    assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_plots_without_data_are_left_out(tmp_path):
  arm = make_arm("x")._replace(up_bytes=None, client_accuracy=None)
  paths = plots.save_plots(tmp_path, [arm])
  assert [p.name for p in paths] == ["accuracy_rounds.png"]


def test_lines_are_means_and_bands_intervals():
  arms = [make_arm("a"), make_arm("b")]
  axes = Figure().subplots()
  plots.draw_accuracy_rounds(axes, arms)
  for arm, line, band in zip(
    arms, axes.get_lines(), axes.collections, strict=True
  ):
    np.testing.assert_allclose(
      line.get_ydata(), 100 * arm.accuracy.mean(0), rtol=1e-12
    )
    edge = {tuple(point) for point in np.round(band.get_paths()[0].vertices, 9)}
    for x, column in zip(arm.rounds, arm.accuracy.T, strict=True):
      _, low, high, *_ = mean_interval(100 * column)
      assert {(x, round(low, 9)), (x, round(high, 9))} <= edge
  names = [text.get_text() for text in axes.texts]
  assert sorted(names) == ["a", "b"]


def test_names_at_line_ends_do_not_overlap():
  arms = [
    make_arm(f"arm {k}")._replace(accuracy=np.full((2, 6), 0.5 + 0.001 * k))
    for k in range(5)
  ]
  figure = Figure((6.4, 4.2), dpi=150, layout="constrained")
  axes = figure.subplots()
  axes.set_ylim(0, 100)
  plots.draw_accuracy_rounds(axes, arms)
  figure.draw_without_rendering()
  boxes = sorted(
    (t.get_window_extent() for t in axes.texts), key=lambda box: box.y0
  )
  for below, above in zip(boxes, boxes[1:], strict=False):
    assert above.y0 >= below.y1 - 3


def test_bytes_axis_has_labels_within_a_decade():
  arm = make_arm("x")
  figure = Figure(layout="constrained")
  axes = figure.subplots()
  plots.draw_accuracy_bytes(axes, [arm])
  figure.draw_without_rendering()
  low, high = axes.get_xlim()
  shown = [
    t.get_text()
    for t in axes.get_xticklabels()
    if low <= t.get_position()[0] <= high
  ]
  assert len([text for text in shown if text]) >= 2
  assert all(re.fullmatch(r"[\d.]+ [kMG]?B", text) for text in shown if text)


@pytest.mark.parametrize(
  "value, text",
  [(0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (1.25e6, "1.25 MB")]
  + [(4.2e9, "4.2 GB"), (3.1e16, "3.1e+04 TB")],
)
def test_bytes(value, text):
  assert plots.format_bytes(value) == text
