"""Fuzz targets of HTTP: requests to a cast's control API, and bodies of the daemon's API, as their server parses them.

The input is a request as text: a line with method and path, headers, an empty line, the body.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from protocol.control import control_messages as messages
from protocol.errors import ProtocolError
from protocol.model.session_records import JoinRequest
from receiver.restore.http_image import parse_content_range_untrusted
from sender.api.bodies.downloads import byte_range_untrusted
from sender.api.guard.auth import Access
from sender.api.guard.guarded_route import _body_untrusted
from sender.api.request_models.session import SessionInput
from sender.api.route_table import OPERATIONS
from sender.cast.session.rival_check import is_confirmed_rival_untrusted
from tests.fuzz.target import Structure, Target
from tests.shell.sender_rig import Rig, make_rig
from tests.shell.test_control_api import SECRET, make_api
from tests.support.network.completion_reports import completion

CAST: Final = "/api/v1/casts/1234abcd"
KEY: Final = "Bearer " + "0" * 64
MEMBER: Final = f"Bearer {SECRET}"
_DROPPED: Final = frozenset(b"\r\n\0")


class _Service:
    """The control API of one cast, called as its server calls it."""

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="diskcast-fuzz-")
        atexit.register(shutil.rmtree, folder)
        self.rig: Rig = make_rig(Path(folder))
        self.grant = self.rig.join()
        self.application = make_api(self.rig).application()
        self.loop = asyncio.new_event_loop()
        atexit.register(self.loop.close)

    def answer(self, data: bytes) -> int:
        """Answer one request and return the status."""
        return self.loop.run_until_complete(_call(self.application, data))


@functools.cache
def _service() -> _Service:
    return _Service()


def parse_request(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the ASGI scope and the body; h11 passes on no line ends and NULs in paths and headers."""
    head, _, body = data.partition(b"\r\n\r\n")
    line, *header_lines = head.split(b"\r\n")
    method, _, target = line.partition(b" ")
    path, _, query = bytes(octet for octet in target if octet not in _DROPPED).partition(b"?")
    headers = [
        (name.strip().lower(), bytes(octet for octet in value.strip() if octet not in _DROPPED))
        for name, colon, value in (header.partition(b":") for header in header_lines)
        if colon and name.strip()
    ]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode("latin-1").upper() or "GET",
        "scheme": "http",
        "path": path.decode("utf-8", "replace") or "/",
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("10.0.0.9", 4711),
        "server": ("10.0.0.1", 7411),
    }
    return scope, body


async def _call(application: Any, data: bytes) -> int:
    scope, body = parse_request(data)
    status = 0
    pieces = [body[: len(body) // 2], body[len(body) // 2 :]]

    async def receive() -> dict[str, object]:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await application(scope, receive, send)
    assert status < 500, f"status {status}"
    return status


def request(method: str, path: str, body: object = None, **headers: str) -> bytes:
    """Return a request as the targets read it."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path}", f"content-length: {len(content)}", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def _control_seeds() -> list[bytes]:
    grant = _service().grant
    bearer = f"Bearer {grant.key.hex()}"
    receiver = f"{CAST}/receivers/{grant.receiver_id}"
    join = messages.join_to_json(JoinRequest("agent-1", "pc-1", {"serial": "X1"}, False, None, ""))
    return [
        request("GET", "/api/v1/casts", authorization=MEMBER),
        request("GET", CAST, authorization=MEMBER),
        request("GET", CAST),
        request("GET", f"{CAST}/manifest", authorization=MEMBER),
        request("POST", f"{CAST}/receivers", join, authorization=MEMBER),
        request("PUT", f"{receiver}/need", {"need": None, "heard_sequence": 5}, authorization=bearer),
        request("GET", f"{receiver}/blocks/1", authorization=bearer),
        request(
            "POST", f"{receiver}/completion", messages.COMPLETION.encode(completion()), authorization=KEY
        ),
    ]


_OPERATIONS: Final = tuple(
    {(operation.body, operation.access is Access.OPEN): operation for operation in OPERATIONS}.values()
)
"""One operation of each kind of body and limit."""


def _read_body(data: bytes) -> object:
    scope, body = parse_request(data)
    pieces = [body]

    async def receive() -> dict[str, object]:
        if not pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(), "more_body": False}

    result = None
    for operation in _OPERATIONS:
        pieces[:] = [body]
        with contextlib.suppress(HTTPException):
            result = _service().loop.run_until_complete(_body_untrusted(Request(scope, receive), operation))
    return result


def _check_rival(data: bytes) -> object:
    # At the source of the announcement it would connect: these URLs are elsewhere, where nothing may be asked.
    return is_confirmed_rival_untrusted(
        data.decode("utf-8", "replace"), "192.0.2.77", _service().rig.parameters, _NO_ACCESS
    )


def _byte_range(data: bytes) -> object:
    total_bytes = 1 << 20
    wanted = byte_range_untrusted(data.decode("latin-1"), total_bytes)
    if wanted is not None:
        start, stop = wanted
        assert 0 <= start <= stop <= total_bytes
    return wanted


_NO_ACCESS: Any = None
_SESSION: Final = TypeAdapter(SessionInput)

TARGETS = (
    Target(
        "range of a disk that a client downloads",
        _byte_range,
        (),
        lambda: [b"bytes=0-4095", b"bytes=10-", b"bytes=-512", b"bytes=0-1,4-5"],
    ),
    Target(
        "range of a web server's answer",
        lambda data: parse_content_range_untrusted(data.decode("latin-1")),
        (ProtocolError,),
        lambda: [b"bytes 0-4095/65536", b"bytes 10-10/11"],
    ),
    Target(
        "body of a sign-in",
        _SESSION.validate_json,
        (ValidationError,),
        lambda: [
            json.dumps({"token": "dct_view_" + "a" * 43}).encode(),
            json.dumps({"code": "dcl_" + "a" * 22}).encode(),
        ],
        Structure.JSON,
        share=5,
    ),
    Target(
        "announced URL of a rival",
        _check_rival,
        (),
        lambda: [b"https://10.0.0.2:7411", b"https://[fe80::2%eth0]:7411/x?y#z", b"http://user@host:99999"],
        share=5,
    ),
    Target("request to the control API", lambda data: _service().answer(data), (), _control_seeds, share=1),
    Target(
        "body of the daemon's API",
        _read_body,
        (),
        lambda: [
            request("POST", "/api/v1/check-in", {"name": "pc"}),
            request("POST", "/api/v1/x").replace(b"application/json", b"text/csv; charset*=utf-8''utf-8"),
        ],
        share=1,
    ),
)
