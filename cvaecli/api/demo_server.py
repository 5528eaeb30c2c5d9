"""The web server of ``cvae demo``: one page for this machine alone.

It listens on 127.0.0.1 and answers only requests that name it so, which keeps pages of other sites out (their
requests carry another host or cannot be read there). The page may only talk to this server.
"""

from __future__ import annotations

import base64
import json
import math
import tempfile
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from .. import media
from ..errors import UserError
from ..pages import render
from .demo import Stage

ADDRESS = "127.0.0.1"
LARGEST_REQUEST = 100_000  # bytes


class DemoServer(ThreadingHTTPServer):
    """Serves the page and the frames that it asks for.

    Args:
        stage: the model.
        port: 0 for any free port.

    Raises:
        UserError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, stage: Stage, port: int = 0) -> None:
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}", "choose another port, or 0") from None
        self.stage = stage
        self.page = render.page("demo.html", script="demo.js", about=stage.describe(), run=stage.name)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer
    protocol_version = "HTTP/1.1"  # keeps the connection: a new one for every frame takes longer

    def do_GET(self) -> None:
        """The page."""
        if self._refused():
            return
        if self.path == "/":
            self._answer(HTTPStatus.OK, self.server.page.encode(), "text/html; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"not found", "text/plain")

    def do_POST(self) -> None:
        """``/restart``, ``/draw``, ``/step``, ``/record`` and ``/gif``; see ``Stage``."""
        if self._refused():
            return
        try:
            given = json.loads(self.rfile.read(self._length()))
            if self.path == "/gif":
                self._answer(HTTPStatus.OK, self._gif(), "image/gif")
                return
            shown = self._called(given)
        except UserError as error:
            self._answer(HTTPStatus.BAD_REQUEST, str(error).encode(), "text/plain")
        except (AttributeError, KeyError, TypeError, ValueError):
            self._answer(HTTPStatus.BAD_REQUEST, b"not a request of this page", "text/plain")
        else:
            self._answer(HTTPStatus.OK, json.dumps(shown).encode(), "application/json")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not logged: there is one for every frame."""

    def _refused(self) -> bool:
        """Whether the request does not come from the page, and has been answered so."""
        here = self.server.url.removeprefix("http://").rstrip("/")
        names = {here, here.replace(ADDRESS, "localhost")}
        origin = self.headers.get("Origin")
        known = origin is None or origin.removeprefix("http://") in names
        if self.headers.get("Host") in names and known:
            return False
        self.close_connection = True
        self._answer(HTTPStatus.FORBIDDEN, b"only for pages of this server", "text/plain")
        return True

    def _length(self) -> int:
        length = int(self.headers.get("Content-Length", ""))
        if not 0 <= length <= LARGEST_REQUEST:
            self.close_connection = True
            raise ValueError("too long")
        return length

    def _called(self, given: dict[str, Any]) -> dict[str, Any]:
        stage = self.server.stage
        if self.path == "/restart":
            return _as_json(stage.restart(int(given["clip"]), int(given["first"]), int(given["seed"])))
        if self.path == "/record":
            stage.record()
            return {}
        if self.path == "/draw":
            stage.draw_again(int(given["seed"]))
            return {}
        if self.path == "/step":
            joints = given.get("joints") and {
                str(name): (_finite(x), _finite(y)) for name, (x, y) in given["joints"].items()
            }
            vector = given.get("vector") and [_finite(value) for value in given["vector"]]
            return _as_json(stage.step(int(given["t"]), joints, vector))
        raise UserError(f"{self.path}: not found")

    def _gif(self) -> bytes:
        frames = self.server.stage.recorded()
        if not frames:
            raise UserError("nothing was recorded", "play or drag first")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "demo.gif"
            media.write(frames, path, fps=25, scale=None, total=len(frames))
            return path.read_bytes()

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a number")
    return max(-1e4, min(1e4, number))  # far outside any picture; larger ones overflow in drawing


def _as_json(shown: dict[str, Any]) -> dict[str, Any]:
    """Arrays of bytes as base64."""
    return {
        name: base64.b64encode(value.tobytes()).decode() if isinstance(value, np.ndarray) else value
        for name, value in shown.items()
    }
