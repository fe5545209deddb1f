"""The dispatcher and `_flags.run`, on a binary made for the test."""

import ast
import os
import shutil
import subprocess
import sys

import pytest
from absl import flags

from fedjax_het_experiments import _flags  # noqa: F401, defines the flags
from fedjax_het_experiments.__main__ import binaries

PROBE = '''"""Probes the dispatcher.

The second line, which a list leaves out.
"""

import jax
from absl import flags

from fedjax_het.core.errors import UserError, unknown
from fedjax_het_experiments import _flags

MODE = flags.DEFINE_string("probe_mode", "ok", "What the probe does.")


def main(argv):
  mode = MODE.value
  if mode == "user":
    raise UserError("density 2 is too large:\\n  give 0 to 1")
  if mode == "unknown":
    raise unknown("data set", "digit", ["digits", "mnist"])
  if mode == "full":
    try:
      with open("/dev/full", "w") as file:
        file.write("x")
    except OSError as error:
      raise RuntimeError("cannot save") from error
  if mode == "tensorstore":
    raise ValueError("RESOURCE_EXHAUSTED: writing a: No space left on device")
  if mode == "interrupt":
    raise KeyboardInterrupt
  if mode == "bug":
    raise ValueError("this is a bug")
  print("devices", jax.device_count())
  print("workdir", _flags.WORKDIR.value)
  print("seeds", *_flags.SEEDS.value)
  print("rounds", _flags.ROUNDS.value)
  print("cache", jax.config.jax_compilation_cache_dir)
  print("debug_nans", jax.config.jax_debug_nans)
  return 3 if mode == "three" else 0


if __name__ == "__main__":
  _flags.run(main, rounds=7, unused=("tensorboard",))
'''

PRESET = '''"""Runs the probe with other defaults."""

from fedjax_het_experiments import _flags, probe

if __name__ == "__main__":
  _flags.run(probe.main, rounds=5, probe_mode="three")
'''


@pytest.fixture(scope="module")
def fedjax_het(tmp_path_factory, source_env, request):
  """Runs Python with a copy of the package that also holds the probe."""
  folder = tmp_path_factory.mktemp("source")
  package = folder / "fedjax_het_experiments"
  source = request.config.rootpath / "experiments/fedjax_het_experiments"
  shutil.copytree(source, package)
  (package / "probe.py").write_text(PROBE)
  (package / "preset.py").write_text(PRESET)
  (package / "_hidden.py").write_text('"""Not a binary."""')
  (package / "flagfiles").mkdir(exist_ok=True)
  (package / "flagfiles/probe.small.flags").write_text("--rounds=99\n")
  path = f"{folder}:{source_env['PYTHONPATH']}"
  env = {
    **source_env,
    "PYTHONPATH": path,
    "XDG_CACHE_HOME": str(folder / "cache"),
  }
  env.pop("JAX_COMPILATION_CACHE_DIR", None)

  def call(*arguments):
    return subprocess.run(
      [sys.executable, *arguments],
      capture_output=True,
      text=True,
      env=env,
      cwd=folder,
    )

  return call


@pytest.fixture(scope="module")
def run(fedjax_het):
  return lambda *arguments: fedjax_het(
    "-m", "fedjax_het_experiments", *arguments
  )


def told(result):
  """The one line that a failed run prints."""
  assert result.returncode == 2, result
  assert result.stdout == ""
  lines = result.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
  return lines[0]


def values(result):
  assert result.returncode == 0, result.stderr
  return dict(line.split(" ", 1) for line in result.stdout.splitlines())


def test_lists_binaries_without_importing_jax(fedjax_het):
  result = fedjax_het("-X", "importtime", "-m", "fedjax_het_experiments")
  assert result.returncode == 0
  listed = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
  assert ["probe", "Probes the dispatcher."] in listed
  assert "_hidden" not in result.stdout
  assert "a list leaves out" not in result.stdout
  imported = {
    line.rsplit("|", 1)[1].strip().split(".")[0]
    for line in result.stderr.splitlines()
    if line.startswith("import time:")
  }
  assert "pkgutil" in imported  # the list of imports is what we think it is
  assert not imported & {"jax", "jaxlib", "numpy", "absl", "fedjax_het"}


def test_version(run):
  result = run("--version")
  assert (result.returncode, result.stdout) == (0, "fedjax-het 0.1.0\n")


def test_unknown_binary_names_the_nearest(run):
  message = told(run("prob", "--rounds=3"))
  assert "unknown binary 'prob': did you mean 'probe'?" in message


@pytest.mark.parametrize(
  "module",
  [["fedjax_het_experiments", "probe"], ["fedjax_het_experiments.probe"]],
)
def test_flags_reach_the_binary(fedjax_het, module):
  got = values(
    fedjax_het(
      "-m",
      *module,
      "--devices=3",
      "--seeds=3,7",
      "--dataset=mnist",
      "--jax_debug_nans",
    )
  )
  assert got["devices"] == "3"
  assert got["seeds"] == "3 7"
  assert got["workdir"] == "results/probe/mnist"
  assert got["rounds"] == "7"  # the binary's default, not the shared one
  assert got["cache"].endswith("cache/fedjax_het/xla")
  assert got["debug_nans"] == "True"


def test_flagfile_is_found_by_name(run):
  got = values(run("probe", "--flagfile=probe.small", "--seeds=2"))
  assert got["rounds"] == "99"
  assert got["seeds"] == "0 1"
  assert "probe.small" in told(run("probe", "--flagfile=probe.smal"))


def test_help_shows_docstring_and_flags(run):
  result = run("probe", "--help")
  assert result.returncode == 0
  assert "second line" in result.stdout
  for flag in ("--probe_mode", "--rounds", "--[no]resume", "--devices"):
    assert flag in result.stdout
  assert "--[no]tensorboard" not in result.stdout
  assert "jax_debug_nans" not in result.stdout


@pytest.mark.parametrize(
  "argument, expected",
  [
    ("--roundz=3", "unknown flag --roundz: did you mean --rounds?"),
    ("--tensorboard", "unknown flag --tensorboard"),  # unused by the probe
    ("--rounds=many", "--rounds=many"),
    ("--seeds=4,4", "different seeds"),
    ("3", "unexpected argument '3'"),
    ("--probe_mode=user", "density 2 is too large: give 0 to 1"),
    ("--probe_mode=unknown", "did you mean 'digits'?"),
    ("--probe_mode=full", "No space left on device"),
    ("--probe_mode=tensorstore", "No space left on device"),
  ],
)
def test_mistakes_are_one_line(run, argument, expected):
  assert expected in told(run("probe", argument))


def test_seeds_are_a_count_or_a_list():
  parse = flags.FLAGS["seeds"].parser.parse
  assert parse("3") == (0, 1, 2)
  assert parse("9,7") == (9, 7)
  assert parse("4,") == (4,)
  for wrong in ("0", "-1", "2,2", "1,-1", ",", "", "x"):
    with pytest.raises(ValueError):
      parse(wrong)
  # what is written to a flagfile reads back the same
  assert parse(flags.FLAGS["seeds"].serializer.serialize((4,))) == (4,)


def test_auto_devices_are_the_usable_cores(monkeypatch):
  parse = flags.FLAGS["devices"].parser.parse
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
  assert (parse("auto"), parse("2")) == (3, 2)
  for wrong in ("0", "some"):
    with pytest.raises(ValueError):
      parse(wrong)


def test_bugs_keep_their_traceback(run):
  result = run("probe", "--probe_mode=bug")
  assert result.returncode == 1
  assert "Traceback" in result.stderr
  assert "ValueError: this is a bug" in result.stderr


def test_a_binary_may_be_another_with_its_own_defaults(run):
  result = run("preset")
  assert result.returncode == 3
  assert "rounds 5\n" in result.stdout
  assert "workdir results/preset/digits\n" in result.stdout
  assert "--probe_mode" in run("preset", "--help").stdout


def test_interrupted(run):
  assert run("probe", "--probe_mode=interrupt").returncode == 130


@pytest.mark.parametrize("name", binaries())
def test_every_binary_explains_itself(name):
  tree = ast.parse(binaries()[name].read_text())
  headline = (ast.get_docstring(tree) or "").splitlines()[:1]
  assert headline and headline[0].endswith((".", "?")), name
  assert "_flags.run(" in ast.unparse(tree.body[-1]), name
