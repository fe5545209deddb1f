"""Builds the wheel from a copy of the sources, offline, and installs it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

PROBE = '''"""Probes an installed wheel."""

import fedjax_het
from fedjax_het_experiments import _flags


def main(argv):
  print(fedjax_het.__file__)
  print(_flags.ROUNDS.value)


if __name__ == "__main__":
  _flags.run(main)
'''
SOURCES = {
  "fedjax_het": "fedjax_het",
  "fedjax_het_kernels": "kernels/fedjax_het_kernels",
  "fedjax_het_experiments": "experiments/fedjax_het_experiments",
}


def checked(*command, **options):
  result = subprocess.run(
    list(map(str, command)), capture_output=True, text=True, **options
  )
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory, request):
  """The checkout as a fresh clone has it, with a probe binary and preset."""
  root = request.config.rootpath
  copy = tmp_path_factory.mktemp("clone") / "source"
  copy.mkdir()
  for name in ("fedjax_het", "kernels", "experiments"):
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(root / name, copy / name, ignore=junk)
  (copy / "tests").mkdir()
  (copy / "tests/test_a.py").write_text("")
  for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
    shutil.copy(root / name, copy)
  for readme in root.glob("*.md"):
    shutil.copy(readme, copy)
  package = copy / SOURCES["fedjax_het_experiments"]
  (package / "wheel_probe.py").write_text(PROBE)
  (package / "flagfiles").mkdir(exist_ok=True)
  (package / "flagfiles/wheel_probe.two.flags").write_text("--rounds=2\n")
  return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
  out = tmp_path_factory.mktemp("dist")
  options = ["--wheel", "--no-isolation", "--outdir", out]
  checked(sys.executable, "-m", "build", *options, source, cwd=out)
  (wheel,) = out.glob("*.whl")
  return wheel


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory):
  """An environment with the wheel; the libraries come from this one."""
  venv = tmp_path_factory.mktemp("wheel") / "venv"
  checked(sys.executable, "-m", "venv", "--without-pip", venv)
  python = venv / "bin/python"
  checked(
    *(sys.executable, "-m", "pip", "--python", python),
    *("install", "--no-deps", "--no-index", wheel),
  )
  query = "import sysconfig; print(sysconfig.get_path('purelib'))"
  site = checked(python, "-c", query).strip()
  libraries = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
  with open(os.path.join(site, "libraries.pth"), "w") as file:
    file.writelines(f"{path}\n" for path in sorted(libraries))
  return venv


@pytest.fixture(scope="module")
def clean_env():
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  return {**env, "JAX_PLATFORMS": "cpu"}


def test_wheel_holds_all_of_three_packages_and_nothing_else(wheel, source):
  assert wheel.name == "fedjax_het-0.1.0-py3-none-any.whl"
  held = set(zipfile.ZipFile(wheel).namelist())
  tops = {name.split("/")[0] for name in held}
  assert tops == {*SOURCES, "fedjax_het-0.1.0.dist-info"}
  wanted = {
    f"{name}/{path.relative_to(source / folder)}"
    for name, folder in SOURCES.items()
    for path in (source / folder).rglob("*")
    if path.suffix in (".py", ".flags") or path.name == "py.typed"
  }
  assert {name for name in held if "dist-info" not in name} == wanted
  assert "fedjax_het/py.typed" in held
  preset = "fedjax_het_experiments/flagfiles/wheel_probe.two.flags"
  assert preset in held


def test_wheel_metadata(wheel):
  archive = zipfile.ZipFile(wheel)
  info = "fedjax_het-0.1.0.dist-info"
  metadata = archive.read(f"{info}/METADATA").decode()
  for line in (
    "Name: fedjax-het",
    "Version: 0.1.0",
    "License-Expression: Apache-2.0",
    "Requires-Python: >=3.11",
    "Provides-Extra: cuda",
    "Provides-Extra: test",
    "Provides-Extra: tensorboard",
  ):
    assert f"\n{line}\n" in metadata
  assert f"{info}/licenses/LICENSE" in archive.namelist()


def test_installed_console_script(venv, clean_env, tmp_path):
  script = venv / "bin/fedjax-het"
  listed = checked(script, cwd=tmp_path, env=clean_env)
  assert "Probes an installed wheel." in listed
  file, rounds = checked(
    *(script, "wheel_probe", "--flagfile=wheel_probe.two"),
    cwd=tmp_path,
    env=clean_env,
  ).split()
  assert file.startswith(str(venv))
  assert rounds == "2"


@pytest.mark.parametrize("where", ["elsewhere", "checkout"])
def test_other_peoples_kernels_stay_importable(
  venv, clean_env, source, tmp_path, where
):
  # Hugging Face's `kernels` and PyPI's `experiments`, already installed
  for name in ("kernels", "experiments"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("THEIRS = True\n")
  code = (
    "import fedjax_het, fedjax_het_kernels, fedjax_het_experiments\n"
    "import kernels, experiments\n"
    "assert kernels.THEIRS and experiments.THEIRS"
  )
  folder = source if where == "checkout" else venv
  env = {**clean_env, "PYTHONPATH": str(tmp_path)}
  checked(venv / "bin/python", "-c", code, cwd=folder, env=env)
