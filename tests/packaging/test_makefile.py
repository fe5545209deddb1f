"""The Makefile says in one line what a bare machine lacks."""

import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
  shutil.which("make") is None, reason="needs make"
)


@pytest.mark.parametrize(
  "fails_on, expected",
  [
    ("*version_info*", "is too old, 3.11 is needed"),
    ("*ensurepip*", "apt install python3-venv make"),
  ],
)
def test_unfit_python(request, tmp_path, fails_on, expected):
  python = tmp_path / "python"
  python.write_text(
    "#!/bin/sh\n"
    f'case "$*" in {fails_on}) exit 1;; esac\n'
    f'exec {sys.executable} "$@"\n'
  )
  python.chmod(0o755)
  assert expected in refused(request, tmp_path, python)


def test_no_python(request, tmp_path):
  message = refused(request, tmp_path, tmp_path / "none")
  assert "apt install python3 python3-venv" in message


def refused(request, tmp_path, python):
  result = subprocess.run(
    ["make", "install", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"],
    capture_output=True,
    text=True,
    cwd=request.config.rootpath,
  )
  assert result.returncode == 2
  assert not (tmp_path / "venv").exists()
  message = result.stderr.splitlines()[0]
  assert message.startswith("error: ")
  return message
