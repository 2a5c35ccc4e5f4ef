"""Serves the page that shows runs, on this machine alone."""

import dataclasses
import functools
import http.server
import json
import sys
import urllib.parse
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tftoolkit.export.web.serving import HOST, is_for_here
from tftoolkit.watch import metrics_file, runs

_PAGE = Path(__file__).parent / "page"
_FILES = {  # by the address; nothing else is read from the disk but runs
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a request, after which a connection's thread ends

    def __init__(self, folder: Path, known: dict[str, Path], *arguments: Any) -> None:
        self._folder = folder
        self._known = known  # all connections': what was found when the list was asked for last
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if not is_for_here(self):
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, b"not for this name\n", "text/plain")
            return
        address = urllib.parse.urlsplit(self.path)
        if address.path in _FILES:
            name, kind = _FILES[address.path]
            self._answer(HTTPStatus.OK, (_PAGE / name).read_bytes(), kind)
        elif address.path == "/runs":
            self._json(self._runs)
        elif address.path == "/metrics":
            self._json(functools.partial(self._metrics, dict(urllib.parse.parse_qsl(address.query))))
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is no such page\n", "text/plain")

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def _runs(self) -> Any:
        places = runs.find(self._folder)
        self._known.update(places)
        found = [dataclasses.asdict(runs.look(name, place)) for name, place in places.items()]
        return {"folder": str(self._folder), "runs": found}

    def _metrics(self, query: dict[str, str]) -> Any:
        """``run``: a name from ``/runs``, so nothing else can be read; ``offset``, ``mark``: of the part before."""
        place = self._known[query["run"]]
        numbers = [int(query.get(name, "0")) for name in ("offset", "mark")]
        if min(numbers) < 0:
            raise ValueError(numbers)
        return dataclasses.asdict(metrics_file.part(place / "metrics.jsonl", *numbers))

    def _json(self, content: Any) -> None:
        try:
            body = json.dumps(content(), allow_nan=False).encode()
        except (KeyError, ValueError):
            self._answer(HTTPStatus.BAD_REQUEST, b"there is no such run or offset\n", "text/plain")
        except OSError as error:
            self._answer(HTTPStatus.NOT_FOUND, f"{error.strerror}\n".encode(), "text/plain")
        else:
            self._answer(HTTPStatus.OK, body, "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "tftoolkit"

    def log_message(self, *_: Any) -> None:
        """Silent: the page asks every second."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a page that was closed while it was answered
            super().handle_error(request, client_address)


def server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of the runs below ``folder``, not yet running; port 0 takes a free one.

    Raises OSError where the folder can't be read or the port is taken.
    """
    return _Server((HOST, port), functools.partial(_Handler, folder, runs.find(folder)))
