"""The downloader, from file:// addresses and from a port that nobody serves."""

import hashlib
import http.server
import socket
import threading

import pytest

from fedjax_het.core.errors import UserError
from fedjax_het.data import download, sources

CONTENT = bytes(range(256)) * 9000  # more than one chunk


@pytest.fixture
def published(tmp_path):
  path = tmp_path / "server" / "train-images-idx3-ubyte.gz"
  path.parent.mkdir()
  path.write_bytes(CONTENT)
  digest = hashlib.sha256(CONTENT).hexdigest()
  return download.File(path.as_uri(), len(CONTENT), digest)


def test_a_file_is_fetched_once(published, tmp_path, monkeypatch):
  folder = tmp_path / "to" / "mnist"
  path = download.fetch(published, folder)
  assert path == folder / "train-images-idx3-ubyte.gz"
  assert path.read_bytes() == CONTENT

  def no_network(*_, **__):
    raise AssertionError("fetched again")

  monkeypatch.setattr(download.urllib.request, "urlopen", no_network)
  assert download.fetch(published, folder) == path


def test_a_damaged_file_is_fetched_again(published, tmp_path):
  (tmp_path / published.name).write_bytes(CONTENT[:-1])
  assert download.fetch(published, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
  "content",
  [CONTENT[:-1], CONTENT + b"x", CONTENT * 2, b"", b"y" + CONTENT[1:]],
)
def test_other_bytes_leave_nothing_behind(published, tmp_path, content):
  (tmp_path / "server" / published.name).write_bytes(content)
  folder = tmp_path / "to"
  with pytest.raises(UserError, match="other bytes than the published"):
    download.fetch(published, folder)
  assert list(folder.iterdir()) == []


def test_no_network_is_one_line(published, tmp_path):
  with socket.socket() as unused:  # bound, not listening: refused at once
    unused.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.gz"
    with pytest.raises(UserError, match="check the network") as caught:
      download.fetch(published._replace(url=url), tmp_path / "to")
  assert "\n" not in str(caught.value)
  assert list((tmp_path / "to").iterdir()) == []


def test_a_servers_error_and_a_connection_that_breaks(published, tmp_path):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      if self.path == "/missing.gz":
        self.send_error(404)
        return
      self.send_response(200)
      self.send_header("Content-Length", str(len(CONTENT)))
      self.end_headers()
      self.wfile.write(CONTENT[:1000])

    def log_message(self, *_):
      pass

  with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    root = f"http://127.0.0.1:{server.server_port}/"
    try:
      for name, message in (
        ("missing.gz", "Not Found"),
        ("broken.gz", "IncompleteRead|other bytes"),
      ):
        with pytest.raises(UserError, match=message):
          download.fetch(published._replace(url=root + name), tmp_path / "to")
    finally:
      server.shutdown()
      thread.join()
  assert list((tmp_path / "to").iterdir()) == []


def test_a_folder_that_cannot_be_made(published, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="check the network and the disk"):
    download.fetch(published, tmp_path / "file" / "mnist")


def test_a_full_disk_leaves_nothing_behind(published, tmp_path, monkeypatch):
  import errno

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(download.os, "replace", full)
  with pytest.raises(UserError, match="No space left on device"):
    download.fetch(published, tmp_path / "to")
  assert list((tmp_path / "to").iterdir()) == []


def test_the_command(published, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(download.FILES, "mnist", (published,))
  assert download.main(["mnist", "--data_dir", str(tmp_path / "d")]) == 0
  path = tmp_path / "d" / "mnist" / published.name
  assert capsys.readouterr().out.strip() == str(path)
  monkeypatch.setenv("FEDJAX_HET_DATA", str(tmp_path / "env"))
  assert download.main(["mnist"]) == 0
  assert (tmp_path / "env" / "mnist" / published.name).is_file()
  capsys.readouterr()

  assert download.main(["mnst"]) == 2
  captured = capsys.readouterr()
  assert captured.err.count("\n") == 1 and "did you mean" in captured.err


def test_the_default_folder_is_where_load_looks(
  published, tmp_path, monkeypatch
):
  monkeypatch.delenv("FEDJAX_HET_DATA", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setitem(download.FILES, "mnist", (published,))
  folder = download.download("mnist")
  assert folder == tmp_path / "cache" / "fedjax_het" / "data" / "mnist"
  # it is found there (and is no IDX file)
  with pytest.raises(UserError, match=f"{folder}/train-images-idx3-ubyte.gz"):
    sources.load("mnist")


def test_the_table_is_complete():
  for name, files in download.FILES.items():
    assert name in sources.SOURCES
    for file in files:
      assert len(file.sha256) == 64 and int(file.sha256, 16)
      assert file.size > 1000 and file.url.startswith("http")
