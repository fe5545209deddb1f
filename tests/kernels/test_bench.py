"""The benchmark: what it writes, and when it refuses to."""

import json

import jax.numpy as jnp
import pytest

from fedjax_het_kernels.bench import __main__ as bench
from fedjax_het_kernels.bench import measure
from fedjax_het_kernels.sign_votes import rivals


def run(tmp_path, op, spec):
  arguments = ["--op", op, "--spec", spec, "--repeats", "1"]
  return bench.main([*arguments, "--out", str(tmp_path / "results")])


@pytest.mark.parametrize(
  "op, spec", [("sign_votes", "less_than_a_block"), ("pack_signs", "one_tile")]
)
def test_writes_json_and_tables(op, spec, tmp_path, capsys):
  assert run(tmp_path, op, spec) == 0
  (path,) = (tmp_path / "results").glob("*.json")
  result = json.loads(path.read_text())
  assert set(result["versions"]) == {"python", "jax", "jaxlib", "numpy"}
  assert f"--spec {spec}" in result["command"]
  ours, *others = result["ops"][op][spec].values()
  assert ours["correct"] and "ours_faster_wall" not in ours
  for row in others:
    ratio = row["wall_ms"] / ours["wall_ms"]
    assert row["ours_faster_wall"] == pytest.approx(ratio)
    assert row["of_copy"] == pytest.approx(ours["of_copy"] / ratio)
  assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
  tables = (tmp_path / "results/README.md").read_text()
  assert f"**{op}, {spec}**" in tables and result["device"] in tables
  assert "| ours |" in capsys.readouterr().out


def wrong(name):
  """sign_votes with one variant that is off by 1e-3 somewhere."""

  def variants(spec):
    found = rivals.variants(spec)
    prepare, right = found[name]
    found[name] = (prepare, lambda *args: right(*args).at[1].add(1e-3))
    return found

  return bench.OPS["sign_votes"]._replace(variants=variants)


def test_no_ratio_and_no_file_if_ours_is_wrong(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(bench.OPS, "sign_votes", wrong("ours"))
  assert run(tmp_path, "sign_votes", "ragged") == 1
  out = capsys.readouterr().out
  assert "**WRONG**" in out and "x / " not in out
  assert not (tmp_path / "results").exists()


def test_no_ratio_for_a_wrong_rival(tmp_path, monkeypatch):
  monkeypatch.setitem(bench.OPS, "sign_votes", wrong("unpack, einsum"))
  assert run(tmp_path, "sign_votes", "ragged") == 0
  (path,) = (tmp_path / "results").glob("*.json")
  rows = json.loads(path.read_text())["ops"]["sign_votes"]["ragged"]
  assert "ours_faster_wall" not in rows["unpack, einsum"]
  assert "ours_faster_wall" in rows["dense float32 signs"]


def test_nan_counts_as_wrong():
  row = measure.bench_variant(
    lambda x: (x,), lambda x: x * jnp.nan, (jnp.ones(3),), 1.0, 1e-5, 1
  )
  assert row["correct"] is False


def test_unknown_spec(tmp_path):
  with pytest.raises(SystemExit):
    run(tmp_path, "sign_votes", "milion")
