"""Serves an exported web page on this machine alone."""

import contextlib
import functools
import http
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# WebAssembly is compiled while it loads, and modules load at all, only under these types; the system may not know them.
TYPES = {".wasm": "application/wasm", ".js": "text/javascript", ".tflite": "application/octet-stream"}
HOST = "127.0.0.1"  # never another: this is a development server


def is_for_here(request: http.server.BaseHTTPRequestHandler) -> bool:
    """Whether it was sent to this machine by name: a page of somebody else whose name is made to lead here (DNS
    rebinding) asks under that name."""
    assert isinstance(request.server, http.server.HTTPServer)
    port = request.server.server_port
    return request.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")


class _Handler(http.server.SimpleHTTPRequestHandler):
    def guess_type(self, path: str | os.PathLike[str]) -> str:
        return TYPES.get(Path(path).suffix) or super().guess_type(path)

    def send_head(self) -> Any:
        if not is_for_here(self):
            self.send_error(http.HTTPStatus.MISDIRECTED_REQUEST, "not for this name")
            return None
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # a newly exported model is seen at once
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Silent: the browser says what it misses."""


def server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of the folder's files, not yet running; port 0 takes a free one.

    Raises FileNotFoundError where the folder is not an exported page, OSError where the port is taken.
    """
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"{folder} is not an exported web page: it has no index.html")
    handler = functools.partial(_Handler, directory=str(folder))
    return http.server.ThreadingHTTPServer((HOST, port), handler)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which the folder is served meanwhile."""
    running = server(folder, 0)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{running.server_port}/"
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
