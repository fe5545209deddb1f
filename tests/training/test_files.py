"""Whole files or none, and storage errors in words."""

import errno
import json
import os
import pathlib

import numpy as np
import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.training import files


def test_json_is_written_whole_and_plain(tmp_path):
  path = tmp_path / "config.json"
  value = {"b": (1, 2), "a": np.float32(0.5), "p": pathlib.Path("x/y")}
  files.write_json_atomic(path, value)
  assert json.loads(path.read_text()) == {"a": 0.5, "b": [1, 2], "p": "x/y"}
  assert os.listdir(tmp_path) == ["config.json"]


def test_what_json_cannot_hold_is_a_bug_not_a_user_error():
  with pytest.raises(TypeError, match="object"):
    files.plain({"a": object()})


def test_a_failed_write_keeps_the_old_file_and_leaves_no_part(
  tmp_path, monkeypatch
):
  path = tmp_path / "a.txt"
  files.write_text_atomic(path, "old")

  def full(number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match="no space left.*--workdir"):
    files.write_text_atomic(path, "new")
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
  "number, text",
  [(errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EACCES, "perm")],
)
def test_reasons_are_found_down_the_chain(number, text):
  with pytest.raises(UserError, match=text):
    with files.storage_errors("x"):
      try:
        raise OSError(number, os.strerror(number))
      except OSError as error:
        raise RuntimeError("wrapped") from error


def test_a_reason_is_found_in_the_text_of_a_foreign_error():
  with pytest.raises(UserError, match="no space left"):
    with files.storage_errors("x"):
      raise ValueError("RESOURCE_EXHAUSTED: [No space left on device]")


@pytest.mark.parametrize("error", [ValueError("shape"), OSError(errno.EIO, "")])
def test_other_errors_pass_through(error):
  with pytest.raises(type(error)) as caught, files.storage_errors("x"):
    raise error
  assert caught.value is error
