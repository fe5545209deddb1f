"""JSON, tables and a plot of what was measured."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
from typing import Any

import jax
import numpy as np

NOTE = """# Measured kernels

Made by `python -m fedjax_het_kernels.bench`. "of copy" is the rate at which a
variant would read our inputs and write our outputs once, as a share of the
device's measured copy bandwidth: 100 % is the roofline of a memory-bound op.
"""


def result(argv, bandwidth: float, ops: dict) -> dict[str, Any]:
  """All that is kept of a run."""
  versions = {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "jaxlib": importlib.metadata.version("jaxlib"),
    "numpy": np.__version__,
  }
  if jax.default_backend() == "gpu":
    versions["triton"] = importlib.metadata.version("triton")
  return {
    "device": device_name(),
    "command": " ".join(["python -m fedjax_het_kernels.bench", *argv]),
    "date": datetime.date.today().isoformat(),
    "load": os.getloadavg()[0],
    "copy_gb_s": bandwidth / 1e9,
    "versions": versions,
    "ops": ops,
  }


def device_name() -> str:
  """E.g. "NVIDIA H100 80GB HBM3" or "AMD EPYC, 2 cores"."""
  device = jax.devices()[0]
  if device.platform != "cpu":
    return device.device_kind
  info = pathlib.Path("/proc/cpuinfo")
  found = info.exists() and re.search(r"model name\s*: (.+)", info.read_text())
  model = found.group(1).strip() if found else platform.machine()
  return f"{model}, {os.cpu_count()} cores"


def table(op: str, spec: str, rows: dict[str, dict]) -> str:
  """A Markdown table."""
  lines = [
    f"**{op}, {spec}**",
    "",
    "| variant | wall ms | CPU ms | of copy | temporary MiB | max error"
    " | ours is faster by (wall / CPU) |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, row in rows.items():
    if "skipped" in row:
      lines.append(f"| {name} | skipped: {row['skipped']} | | | | | |")
      continue
    ratio = ""
    if "ours_faster_wall" in row:
      ratio = f"{row['ours_faster_wall']:.1f}x / {row['ours_faster_cpu']:.1f}x"
    error = f"{row['max_error']:.1e}" if row["correct"] else "**WRONG**"
    share = f"{row['of_copy']:.1%}" if "of_copy" in row else ""
    lines.append(
      f"| {name} | {row['wall_ms']:.2f} | {row['cpu_ms']:.2f} | {share}"
      f" | {row['temp_mib']:.1f} | {error} | {ratio} |"
    )
  return "\n".join(lines) + "\n"


def write(out: pathlib.Path, result: dict) -> None:
  """Writes this device's JSON and plot, then the tables of all devices."""
  out.mkdir(parents=True, exist_ok=True)
  slug = re.sub(r"[^a-z0-9]+", "_", result["device"].lower()).strip("_")
  path = out / f"{slug}.json"
  path.write_text(json.dumps(result, indent=2) + "\n")
  plot(out / f"{slug}.png", result)
  text = [NOTE]
  for path in sorted(out.glob("*.json")):
    result = json.loads(path.read_text())
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    text.append(
      f"## {result['device']}\n\n`{result['command']}`, {result['date']};"
      f" {versions}; copy {result['copy_gb_s']:.1f} GB/s; load average at the"
      f" end {result['load']:.1f}.\n\n![rates]({path.stem}.png)\n"
    )
    for op, specs in result["ops"].items():
      text += [table(op, spec, rows) for spec, rows in specs.items()]
  (out / "README.md").write_text("\n".join(text))


def plot(path: pathlib.Path, result: dict) -> None:
  """Rates of all variants beside the copy bandwidth, on a log axis."""
  from matplotlib.figure import Figure

  groups = [
    (f"{op}, {spec}", rows)
    for op, specs in result["ops"].items()
    for spec, rows in specs.items()
  ]
  figure = Figure(figsize=(8, 1 + 1.0 * len(groups)), layout="constrained")
  axes = figure.subplots()
  copy = result["copy_gb_s"]
  axes.axvline(copy, color="0.4", linestyle="--", linewidth=1)
  axes.annotate(
    f"copy {copy:.0f} GB/s",
    (copy, 1),
    xycoords=("data", "axes fraction"),
    xytext=(-4, -12),
    textcoords="offset points",
    ha="right",
    color="0.4",
    fontsize=8,
  )
  for i, (_, rows) in enumerate(groups):
    for j, (name, row) in enumerate(rows.items()):
      if "of_copy" not in row:
        continue
      rate = row["of_copy"] * copy
      height = i - 0.3 + 0.6 * j / max(len(rows) - 1, 1)
      color = "#0072b2" if j == 0 else "0.7"
      axes.plot(rate, height, "o", color=color, zorder=3)
      axes.annotate(
        name,
        (rate, height),
        xytext=(6, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        color=color if j == 0 else "0.35",
      )
  axes.set_xscale("log")
  axes.set_yticks(range(len(groups)), [name for name, _ in groups])
  axes.invert_yaxis()
  axes.set_xlabel("GB/s of our inputs and outputs, each moved once")
  axes.set_title(result["device"], loc="left", fontsize=10)
  axes.grid(axis="x", color="0.9")
  axes.spines[["top", "right"]].set_visible(False)
  figure.savefig(path, dpi=120)
