"""The notebook runs from top to bottom, and is committed with its outputs."""

import pathlib

import nbformat
from nbclient import NotebookClient

PATH = pathlib.Path(__file__).parents[2] / "notebooks" / "quickstart.ipynb"


def test_it_runs(monkeypatch, source_env):
  monkeypatch.setenv("PYTHONPATH", source_env["PYTHONPATH"])
  monkeypatch.setenv("JAX_PLATFORMS", source_env["JAX_PLATFORMS"])
  notebook = nbformat.read(PATH, as_version=4)
  client = NotebookClient(notebook, timeout=600, kernel_name="python3")
  client.execute(cwd=str(PATH.parent))
  text = "".join(
    output.get("text", "")
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
  )
  accuracy = [
    float(line.split("accuracy")[1].split()[0])
    for line in text.splitlines()
    if line.startswith(("FedAvg", "HideNseek"))
  ]
  assert len(accuracy) == 2 and min(accuracy) > 0.5


def test_outputs_are_committed():
  notebook = nbformat.read(PATH, as_version=4)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert all(cell.execution_count for cell in code)
  images = [
    output
    for cell in code
    for output in cell.outputs
    if "image/png" in output.get("data", {})
  ]
  assert len(images) >= 2
