"""What imports what: declared libraries, floors of the house, no effects."""

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = {
  "fedjax_het": ROOT / "fedjax_het",
  "fedjax_het_kernels": ROOT / "kernels/fedjax_het_kernels",
  "fedjax_het_experiments": ROOT / "experiments/fedjax_het_experiments",
}
# A package may import from its own floor and those below.
FLOORS = [
  {"core"},
  {"data", "models", "masks", "devices", "selection"},
  {"seqpar", "robust", "privacy"},
  {"algorithms"},
  {"training"},
]
# Imported only inside the function that needs it: extras, rivals to race.
OPTIONAL = {
  "datasets",
  "dp_accounting",
  "flwr_datasets",
  "tensorboardX",
  "torch",
  "triton",
}


def imported(path):
  """Dotted names of all modules that a file imports, wherever it does."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def sources(package):
  return sorted(PACKAGES[package].rglob("*.py"))


def floor(name):
  if name in ("version", "__version__"):
    return 0
  numbers = [i for i, floor in enumerate(FLOORS) if name in floor]
  assert numbers, f"{name!r} has no place in FLOORS"
  return numbers[0]


def test_floors():
  for path in sources("fedjax_het"):
    parts = path.relative_to(PACKAGES["fedjax_het"]).parts
    if len(parts) == 1:
      continue
    for name in imported(path):
      top, *rest = name.split(".")
      assert top != "fedjax_het_experiments", path
      if top == "fedjax_het":
        assert floor(rest[0]) <= floor(parts[0]), f"{path} imports {name}"
      if top == "fedjax_het_kernels":
        assert parts[0] != "core", f"{path} imports {name}"


def test_kernels_stand_alone():
  for path in sources("fedjax_het_kernels"):
    tops = {name.split(".")[0] for name in imported(path)}
    assert not tops & {"fedjax_het", "fedjax_het_experiments"}, path


def test_every_library_is_declared():
  setup = (ROOT / "setup.py").read_text()
  block = re.search(r"install_requires=\[(.*?)\n  \],", setup, re.S).group(1)
  declared = set(re.findall(r'"([A-Za-z0-9_-]+)>=', block))
  assert {"jax", "optax", "scikit-learn"} <= declared
  distributions = importlib.metadata.packages_distributions()
  for package in PACKAGES:
    for path in sources(package):
      tops = {name.split(".")[0] for name in imported(path)}
      for top in tops - sys.stdlib_module_names - OPTIONAL - set(PACKAGES):
        offered = {name.lower() for name in distributions.get(top, [top])}
        # jaxlib comes with jax
        assert offered & {*declared, "jaxlib"}, f"{path} imports {top}"


def test_jax_reads_its_flags_once():
  calls = [
    path
    for package in PACKAGES
    for path in sources(package)
    if re.search(r"(config|parse_flags)_with_absl\(", path.read_text())
  ]
  assert [path.name for path in calls] == ["_flags.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_everything_starts_nothing(package, source_env):
  """No backend, nothing optional; no two binaries define one flag.

  Kernels live in modules called triton, imported when they are lowered.
  """
  code = f"""
import importlib, pkgutil, sys
import {package} as package
for module in pkgutil.walk_packages(package.__path__, "{package}."):
  last = module.name.split(".")[-1]
  if not last.startswith("_") and last != "triton":
    importlib.import_module(module.name)
assert not {OPTIONAL} & set(sys.modules)
import jax
jax.config.update("jax_num_cpu_devices", 3)  # raises if a backend runs
assert jax.device_count() == 3
"""
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=source_env
  )
  assert result.returncode == 0, result.stderr
