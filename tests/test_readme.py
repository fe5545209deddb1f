"""The README's Python, and that of the guides, runs as it stands."""

import pathlib
import re

import jax

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"


def run(path):
  """The names that a page's blocks define, run one after another."""
  names = {}
  for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
    exec(compile(block, str(path), "exec"), names)
  return names


def test_the_algorithm_of_the_readme_runs(capsys):
  assert run(README)["history"]["eval"]["accuracy"] > 0.6
  assert capsys.readouterr().out


def test_the_algorithm_is_as_short_as_its_title_says():
  code = re.search(r"def fed_prox.*?```", README.read_text(), re.DOTALL)
  assert len(code.group().splitlines()) - 1 <= 31


def test_devices_and_selection(capsys):
  names = run(ROOT / "docs/devices_and_selection.md")
  assert 0 < names["state"].seconds <= 20 * 3600
  seen = names["history"]["rounds"]
  assert 0 < seen.present.sum() and (seen.seconds <= 60.0).all()
  assert capsys.readouterr().out


def test_asynchronous(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = run(ROOT / "docs/asynchronous.md")
  assert names["result"].records[-1]["eval/accuracy"] > 0.6
  assert names["Picky"](3).start()[2].client == 2


def test_sparse(capsys):
  names = run(ROOT / "docs/sparse.md")
  accuracy, state = names["history"]["eval"]["accuracy"], names["state"]
  assert accuracy > 0.6 and capsys.readouterr().out
  kept = names["tree"].num_kept(state.server.mask)
  total = names["tree"].num_maskable(state.server.params)
  assert abs(kept / total - 0.1) < 0.01
  for name in ("sparse", "spine"):
    step = names["rounds"].make_round(names[name], names["uniform"](10))
    jax.eval_shape(
      lambda data, name=name, step=step: step(
        names["rounds"].init_state(names[name], jax.random.key(0), 20), data
      ),
      names["data"],
    )
