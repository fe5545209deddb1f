"""Runs an experiment binary: `fedjax-het BINARY --flags`.

A binary is a module of this package whose name does not start with `_`.  It
runs as `__main__`, because absl's --help shows the flags of the main module
only.  Listing reads source text: importing jax would take seconds.
"""

import ast
import difflib
import pathlib
import pkgutil
import runpy
import sys

import fedjax_het_experiments as package

USAGE = """usage: fedjax-het BINARY [--flags]
       fedjax-het BINARY --help"""


def binaries() -> dict[str, pathlib.Path]:
  """Maps the name of each binary to its source file, sorted by name."""
  return {
    module.name: pathlib.Path(module.module_finder.path, f"{module.name}.py")
    for module in pkgutil.iter_modules(package.__path__)
    if not module.name.startswith("_") and not module.ispkg
  }


def headline(source: pathlib.Path) -> str:
  """The first line of a module's docstring, without running the module."""
  doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
  return doc.splitlines()[0] if doc else ""


def main() -> None:
  """Entry point of the console script; exits 2 if there is no such binary."""
  names = binaries()
  if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
    print(f"{USAGE}\n\nbinaries:")
    width = max(map(len, names), default=0)
    for name, source in names.items():
      print(f"  {name:{width}}  {headline(source)}")
    return
  if sys.argv[1] == "--version":
    from fedjax_het import __version__

    print(f"fedjax-het {__version__}")
    return
  name = sys.argv.pop(1)
  if name not in names:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ""
    known = ", ".join(names)
    sys.exit(_complain(f"unknown binary {name!r}{hint} (known: {known})"))
  runpy.run_module(
    f"{package.__name__}.{name}", run_name="__main__", alter_sys=True
  )


def _complain(message: str) -> int:
  print(f"error: {message}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  main()
