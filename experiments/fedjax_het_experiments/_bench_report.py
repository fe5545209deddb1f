"""What a benchmark leaves: results.json, summary.md and a table on screen."""

import pathlib
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fedjax_het.training.files import write_json_atomic, write_text_atomic
from fedjax_het.training.report import markdown_table, run_facts
from fedjax_het_experiments import _flags


def write_bench(
  title: str,
  headings: Sequence[str],
  rows: Sequence[Sequence[str]],
  points: Sequence[dict],
  *,
  seconds: float,
  facts: dict[str, str],
) -> None:
  """Writes a benchmark's results into --workdir and prints its table.

  Args:
    title: of the table.
    headings, rows: the table.
    points: every measurement, JSON-like.
    seconds: how long it all took.
    facts: what a reader must know beside command, versions and device.
  """
  facts = run_facts(seconds=seconds) | facts
  workdir = pathlib.Path(_flags.WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  results = {"facts": facts, "points": list(points)}
  write_json_atomic(workdir / "results.json", results)
  lines = [f"# {title}\n", *(f"- {k}: {v}" for k, v in facts.items()), ""]
  text = "\n".join([*lines, markdown_table(headings, rows), ""])
  write_text_atomic(workdir / "summary.md", text)
  table = Table(*headings, title=title)
  for row in rows:
    table.add_row(*row)
  Console().print(table)
  print(f"summary: {workdir / 'summary.md'}")
