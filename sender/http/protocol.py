"""One HTTP connection: uvicorn's protocol with strict framing, and a deadline for each phase of a request."""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import enum
import functools
import json
from http import HTTPStatus
from typing import Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from sender.http.connections import Connection, connection_state
from sender.http.rejections import Rejection

_HEADER_BYTES_MAX: Final = 32 << 10
_HEAD_S: Final = 10.0
"""Time for a whole request head. A head fits in a few packets; a slower one holds the connection on purpose."""
BODY_S: Final = 30.0
"""Time for a whole body, however small the pieces in which it arrives; the endpoint that reads it answers 408."""
_BODY_UNREAD_S: Final = 120.0
"""Time for a body that its endpoint doesn't read yet: large ones take turns."""
_READER_STALLED_S: Final = 60.0
"""Longest time in which a client may read nothing of a response that waits for it."""
_DISCARD_S: Final = 1.0
"""Time for the rest of an unread body: closing at once would reset the connection and lose the response."""
_WIDE_BYTES: Final = 256 << 10
"""TLS bytes that are read at once for large bodies: a record at a time costs 5 s of processor time for a gigabyte."""
_PROBLEM_TYPE: Final = b"application/problem+json"


class _Phase(enum.Enum):
    HEAD = "head"
    BODY = "body"
    RESPONSE = "response"
    RESTING = "resting"
    DISCARDING = "discarding"


_DEADLINES: Final = {
    _Phase.HEAD: (_HEAD_S, Rejection.HEAD_TIMEOUT),
    _Phase.BODY: (_BODY_UNREAD_S, Rejection.BODY_TIMEOUT),
    _Phase.DISCARDING: (_DISCARD_S, None),
}
"""uvicorn's own timer closes a resting connection; a response may wait as long as its endpoint wants."""


class _StrictConnection(h11.Connection):
    """An HTTP parser that refuses Transfer-Encoding in requests.

    With Content-Length, a proxy and this server may disagree on the end of the body (request smuggling, RFC 9112
    11.2). Without it, the size is unknown until it is too late. All clients of these APIs know the length.

    Attributes:
        error: the reason why the peer's bytes aren't a valid request; None so far.
    """

    error: h11.RemoteProtocolError | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event; raise ``RemoteProtocolError`` for an invalid request."""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check_framing(event)
        except h11.RemoteProtocolError as error:
            self.error = error
            raise
        return event


class HttpProtocol(H11Protocol):
    """A connection of :class:`sender.http.server.HttpServer`."""

    def __init__(self, config: Config, server_state: ServerState, connection: Connection) -> None:
        """Serve the requests of ``connection``, which a table holds."""
        super().__init__(config, server_state, connection_state(connection))
        self.conn: _StrictConnection = _StrictConnection(h11.SERVER, _HEADER_BYTES_MAX)
        self._connection = connection
        self._phase = _Phase.HEAD
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        self._connection.close_now = transport.abort
        self._connection.widen = functools.partial(_widen, transport)
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel all deadlines."""
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()
        self._connection.closed()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Parse ``data``; the deadline of a phase doesn't move while its bytes trickle in."""
        if self._phase is _Phase.RESTING:
            self._enter(_Phase.HEAD)
        super().data_received(data)
        self._follow_parser()

    def on_response_complete(self) -> None:
        """Wait for the next request, or discard the rest of this one."""
        super().on_response_complete()
        self._follow_parser()

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._stalled = self.loop.call_later(_READER_STALLED_S, self._abort, Rejection.READER_STALLED)

    def resume_writing(self) -> None:
        """Continue after :meth:`pause_writing`."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that aren't a valid request, and close."""
        self._connection.count(Rejection.BAD_REQUEST)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the endpoint's response is no longer wanted
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # within another response
            return
        error = self.conn.error
        status = HTTPStatus(error.error_status_hint if error else HTTPStatus.BAD_REQUEST)
        document = {"title": status.phrase, "status": int(status), "detail": str(error or msg)}
        body = json.dumps(document).encode()
        headers = [
            (b"content-type", _PROBLEM_TYPE),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=status, headers=headers, reason=status.phrase.encode())
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _follow_parser(self) -> None:
        """Enter the phase of which the parser's state speaks."""
        theirs, ours = self.conn.their_state, self.conn.our_state
        if theirs is h11.SEND_BODY:
            self._enter(_Phase.DISCARDING if ours is h11.DONE else _Phase.BODY)
        elif theirs is h11.IDLE:
            waits = not self.conn.trailing_data[0]
            rests = waits and self.timeout_keep_alive_task is not None
            self._enter(_Phase.RESTING if rests else _Phase.HEAD)
        else:
            self._enter(_Phase.RESPONSE)

    def _enter(self, phase: _Phase) -> None:
        if phase is self._phase:
            return
        self._phase = phase
        if phase is _Phase.RESTING:
            self._connection.rest()
        else:
            self._connection.work()
        self._arm()

    def _arm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._phase in _DEADLINES:
            seconds, reason = _DEADLINES[self._phase]
            self._deadline = self.loop.call_later(seconds, self._abort, reason)

    def _abort(self, reason: Rejection | None) -> None:
        if reason is not None:
            self._connection.count(reason)
        self.transport.abort()


def _widen(transport: asyncio.Transport) -> None:
    """Let TLS read up to :data:`_WIDE_BYTES` at once instead of a record."""
    tls = getattr(transport, "_ssl_protocol", None)
    if isinstance(tls, asyncio.sslproto.SSLProtocol):
        tls.max_size = _WIDE_BYTES  # type: ignore[misc]  # asyncio asks the instance


def _check_framing(request: h11.Request) -> None:
    names = {name for name, _value in request.headers}
    if b"transfer-encoding" not in names:
        return
    if b"content-length" in names:
        raise h11.RemoteProtocolError(
            "Content-Length and Transfer-Encoding exclude each other: send only Content-Length"
        )
    raise h11.RemoteProtocolError(
        "Transfer-Encoding isn't accepted in requests: send Content-Length",
        error_status_hint=HTTPStatus.LENGTH_REQUIRED,
    )
