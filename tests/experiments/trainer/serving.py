"""A server on the loopback interface, which has a named corpus to download."""

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from experiments.trainer.corpus import NamedCorpus


class Server(ThreadingHTTPServer):
  """Serves a text at /text; /moved redirects there, /short sends half of it.

  At /both, a request waits for a second one, and then both are answered.
  """

  def __init__(self, text):
    super().__init__(("127.0.0.1", 0), Handler)
    self.text = text
    self.paths = []  # those requested, in order
    self.both = threading.Barrier(2, timeout=30)

  def corpus(self, path, text=None):
    """Return a corpus at a path, with the size and the hash of `text`.

    Without `text`, they are those of the text that is served.
    """
    text = self.text if text is None else text
    sha256 = hashlib.sha256(text).hexdigest()
    return NamedCorpus(f"{self.url}{path}", len(text), sha256)

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
  def do_GET(self):
    self.server.paths.append(self.path)
    text, status = self.server.text, 200
    if self.path == "/moved":
      status = 302
    elif self.path == "/both":
      self.server.both.wait()
    elif self.path not in ("/text", "/short"):
      status = 404
    self.send_response(status)
    if status == 302:
      self.send_header("Location", "/text")
    body = text if status == 200 else b""
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body[: len(body) // 2] if self.path == "/short" else body)

  def log_message(self, *args):
    pass


@contextlib.contextmanager
def serve(text):
  """Serve a text during the block."""
  with Server(text) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()
