"""A real HTTP server for a folder's files, with the faults of real servers and networks."""

from __future__ import annotations

import base64
import hashlib
import http.server
import re
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class HttpFiles:
    """Serves ``folder`` on a free port of the loopback; a context manager.

    Attributes:
        ranges: support ``Range``.
        tags: send ``ETag`` and support ``If-Match``; otherwise ``Last-Modified`` is used, or nothing.
        times: send ``Last-Modified``.
        cut_after_bytes: break the connection after this many bytes of a body.
        failures: statuses of the next answers to GET, instead of the files.
        login: ``user:password`` that requests must have.
        requests: method, path and range of each request.
        body_bytes: size of all bodies, counted before they are sent, so that a received body has been counted.
        before_get: called with the path before each GET; a ConnectionError breaks the connection.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges = True
        self.tags = True
        self.times = True
        self.cut_after_bytes: int | None = None
        self.failures: list[int] = []
        self.login = ""
        self.requests: list[tuple[str, str, str]] = []
        self.body_bytes = 0
        self.before_get: Callable[[str], None] = lambda _: None
        self.stopped = False
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def gets(self, path: str) -> int:
        """Return the number of requests for a file."""
        return sum(method == "GET" and requested == path for method, requested, _ in self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the server and close its connections."""
        self.stopped = True
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _handler_of(files: HttpFiles) -> type[http.server.SimpleHTTPRequestHandler]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(files.folder))

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            try:
                files.before_get(self.path)
            except ConnectionError:
                self.close_connection = True
                return
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            if files.stopped:
                self.close_connection = True
                return
            wanted = self.headers.get("Range", "")
            files.requests.append((self.command, self.path, wanted))
            if files.login:
                expected = "Basic " + base64.b64encode(files.login.encode()).decode()
                if self.headers.get("Authorization") != expected:
                    self._refuse(HTTPStatus.UNAUTHORIZED)
                    return
            if body and files.failures:
                self._refuse(files.failures.pop(0))
                return
            path = Path(self.translate_path(self.path))
            if path.is_dir():
                (super().do_GET if body else super().do_HEAD)()
                return
            try:
                data = path.read_bytes()
            except OSError:
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
            if files.tags and self.headers.get("If-Match", tag) != tag:
                self._refuse(HTTPStatus.PRECONDITION_FAILED)
                return
            start, stop = 0, len(data)
            ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) if files.ranges else None
            if ranged:
                start, stop = int(ranged[1]), min(len(data), int(ranged[2]) + 1)
                self.send_response(HTTPStatus.PARTIAL_CONTENT)
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            else:
                self.send_response(HTTPStatus.OK)
            self.send_header("Content-Length", str(stop - start))
            if files.tags:
                self.send_header("ETag", tag)
            if files.times:
                self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
            self.end_headers()
            if body:
                self._send(data[start:stop])

        def _send(self, data: bytes) -> None:
            cut = files.cut_after_bytes
            part = data if cut is None or len(data) <= cut else data[:cut]
            files.body_bytes += len(part)
            try:
                self.wfile.write(part)
                self.wfile.flush()
            except OSError:  # the client has closed the connection
                self.close_connection = True
                return
            if len(part) < len(data):
                self.close_connection = True

        def _refuse(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
