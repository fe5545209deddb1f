"""Compiles every kernel for GPUs that are not here, and reads the machine code.

  python -m fedjax_het_kernels.aot [--op sign_votes] [--arch 90] [--json FILE]

For each op's shapes marked `aot` in its specs.py it prints registers, spills,
shared memory, the width of global loads, and the instructions of the innermost
loop: a guard against regressions that needs no GPU and no driver.  Triton must
not run interpreted, so tests call this in a process of their own.
"""

import argparse
import collections
import functools
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import jax

from fedjax_het_kernels.bridge import triton_call_p
from fedjax_het_kernels.bridge.compile import Launch, compile_kernel
from fedjax_het_kernels.bridge.interpret import VARIABLE

# Folders whose specs.py has AOT: (name, op, shapes, static parameters).
OPS = (
  "sign_votes",
  "pack_signs",
  "masked_matmul",
  "overlap_mean",
  "sparse_sum",
)
ARCHITECTURES = (80, 90)


class Case(NamedTuple):
  """A shape to compile an op's kernels for.

  name: unique within the op.
  op: a `bridge.Op`'s name in the op's module, e.g. "VOTES".
  shapes: of its inputs.
  static: its static parameters.
  """

  name: str
  op: str
  shapes: tuple[jax.ShapeDtypeStruct, ...]
  static: dict[str, Any]


class Report(NamedTuple):
  """What the compiler made of one kernel.

  registers: a thread; stack: bytes of it, more than 0 if registers spill;
  shared: bytes a program; loads: PTX global loads by name, with counts;
  loop: instructions of the largest innermost loop; tensor: whether it has
  tensor-core instructions; threads: a program.
  """

  kernel: str
  arch: int
  registers: int
  stack: int
  shared: int
  loads: dict[str, int]
  loop: int
  tensor: bool
  threads: int


def launches(op, case: Case) -> list[tuple[Launch, list, list]]:
  """The kernel launches of an op, with the shapes of inputs and outputs."""
  from fedjax_het_kernels.bridge import triton_call

  run = functools.partial(op.triton, triton_call, **case.static)
  found = []

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive is triton_call_p:
        found.append(
          (
            equation.params["launch"],
            [variable.aval for variable in equation.invars],
            [variable.aval for variable in equation.outvars],
          )
        )
      for value in equation.params.values():
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
          walk(inner)

  walk(jax.make_jaxpr(run)(*case.shapes).jaxpr)
  return found


def report(launch: Launch, inputs, outputs, arch: int) -> Report:
  """Compiles one launch and reads the result."""
  kernel, _ = compile_kernel(launch, [*inputs, *outputs], arch)
  sass, usage = disassemble(kernel.asm["cubin"])
  lines = loop(sass)
  return Report(
    kernel=launch.source.partition(":")[2],
    arch=arch,
    registers=usage["REG"],
    stack=usage["STACK"],
    shared=kernel.metadata.shared,
    loads=dict(
      collections.Counter(re.findall(r"ld\.global[.\w]*", kernel.asm["ptx"]))
    ),
    loop=len(lines),
    tensor=any(re.match(r"(HG|[HI]|G|QG)?MMA", line) for line in lines),
    threads=32 * launch.num_warps,
  )


def disassemble(cubin: bytes) -> tuple[str, dict[str, int]]:
  """Machine code as text, and what cuobjdump says of resources."""
  import triton

  tools = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin"
  with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(cubin)
    file.flush()

    def run(*command):
      done = subprocess.run(
        [*command, file.name], capture_output=True, text=True, check=True
      )
      return done.stdout

    usage = run(tools / "cuobjdump", "-res-usage")
    sass = run(tools / "nvdisasm", "-c")
  pairs = re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)
  return sass, {key: int(value) for key, value in pairs}


def loop(sass: str) -> list[str]:
  """Instructions of the largest loop that has no loop inside."""
  lines, labels, loops = [], {}, []
  for line in sass.splitlines():
    if label := re.match(r"^\s*(\.L_x_\d+):", line):
      labels[label.group(1)] = len(lines)
    elif code := re.match(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
      lines.append(re.sub(r"^@!?U?P[T\d]+\s+", "", code.group(1)))
  for end, line in enumerate(lines):
    target = re.search(r"^BRA.*`\((\.L_x_\d+)\)", line)
    if target and labels.get(target.group(1), end + 1) <= end:
      loops.append((labels[target.group(1)], end))
  innermost = [
    (a, b)
    for a, b in loops
    if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)
  ]
  if not innermost:
    return []
  begin, end = max(innermost, key=lambda span: span[1] - span[0])
  return lines[begin : end + 1]


def cases(op: str) -> tuple[Case, ...]:
  """The cases of an op's folder."""
  specs = importlib.import_module(f"fedjax_het_kernels.{op}.specs")
  return tuple(Case(*case) for case in specs.AOT)


def reports(op: str, archs=ARCHITECTURES) -> dict[str, list[Report]]:
  """Reports of every kernel launch, by the name of the case."""
  module = importlib.import_module(f"fedjax_het_kernels.{op}.op")
  return {
    case.name: [
      report(*launch, arch)
      for arch in archs
      for launch in launches(getattr(module, case.op), case)
    ]
    for case in cases(op)
  }


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog="python -m fedjax_het_kernels.aot")
  parser.add_argument("--op", choices=OPS, action="append")
  parser.add_argument("--arch", type=int, action="append")
  parser.add_argument("--json", type=pathlib.Path)
  flags = parser.parse_args(argv)
  if os.environ.get(VARIABLE) == "1":
    parser.error(f"triton compiles nothing with {VARIABLE}=1: unset it")
  result = {}
  for op in flags.op or OPS:
    found = reports(op, flags.arch or ARCHITECTURES)
    result[op] = {
      name: [item._asdict() for item in items] for name, items in found.items()
    }
    for name, items in found.items():
      for item in items:
        print(
          f"{op:14} {name:16} {item.kernel:12} sm_{item.arch}"
          f"  registers {item.registers:3}  stack {item.stack:3}"
          f"  shared {item.shared:6}  loop {item.loop:4}"
          f"{'  tensor' if item.tensor else ''}  {item.loads}",
          flush=True,
        )
  if flags.json:
    flags.json.write_text(json.dumps(result, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
