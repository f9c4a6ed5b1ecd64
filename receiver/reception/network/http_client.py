"""HTTPS client of the agent: exchanges on a kept connection, bounded in time and size, in a thread."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import select
import socket
import urllib.parse
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import trio

from protocol.constants import CONTROL_BODY_BYTES_MAX, MIB
from protocol.control.control_messages import (
    API_BASE,
    JSON_TYPE,
    JsonObject,
    parse_json_untrusted,
    problem_from_json_untrusted,
)
from protocol.errors import ConfigurationError, ProtocolError
from protocol.program.peer_trust import PeerTrust, is_loopback_host
from protocol.program.pinned_tls import certificate_error
from protocol.shared.units import format_bytes

EXCHANGE_TIMEOUT_S: Final = 10.0
"""Timeout of connecting and of each read: even a sender that transmits at full rate answers within milliseconds."""

ANSWER_BYTES_MAX: Final = MIB
"""Longest answer: a daemon's list of a thousand casts."""

_Result = TypeVar("_Result")

Refusal = Callable[[int, str], Exception]
"""A function that returns the error for a status from 300 to 499 and its detail."""

_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}


class Unreachable(Exception):  # noqa: N818 - a state between retries, never shown as an error
    """A request without an answer; a retry may succeed."""


class HttpPeer:
    """A server at one base URL.

    A connection is kept between exchanges: a handshake for each would cost a daemon with a thousand waiting agents
    several percent of a core.
    """

    def __init__(
        self,
        url: str,
        trust: PeerTrust,
        *,
        server_kind: str,
        example: str,
        base: str = API_BASE,
        loopback_http: bool = False,
        connections: int = 1,
    ) -> None:
        """Parse the base URL ``SCHEME://HOST:PORT``.

        Args:
            url: the URL, from the operator or from another program.
            trust: certificates that are accepted.
            server_kind: the kind of server, for the error message.
            example: a valid URL, for the error message.
            base: prefix of every path.
            loopback_http: allow plain HTTP to this machine.
            connections: connections that are kept between exchanges.

        Raises:
            ConfigurationError: the URL is invalid, or ``trust`` accepts no certificate.
        """
        self.url = url.rstrip("/")
        try:
            parts = urllib.parse.urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigurationError(f"{url!r} isn't a URL: {error}; write for example {example}") from error
        if parts.scheme not in _PORTS or not host or parts.path or parts.query or parts.username:
            raise ConfigurationError(f"{url!r} isn't the URL of {server_kind}: write for example {example}")
        if parts.scheme == "http" and not (loopback_http and is_loopback_host(host)):
            raise ConfigurationError(
                f"{url!r} isn't encrypted: everybody on the network could read and alter the exchange; write "
                f"https://, for example {example}"
            )
        self._tls = trust.context() if parts.scheme == "https" else None
        self._host = host
        self._base = base
        self._port = port or _PORTS[parts.scheme]
        # An exchange takes one out, so that a cancelled exchange and its successor never share it.
        self._idle_max = connections
        self._idle: list[http.client.HTTPConnection] = []
        weakref.finalize(self, _close_all, self._idle)

    async def exchange_json(
        self,
        method: str,
        path: str,
        *,
        refusal: Refusal,
        body: JsonObject | None = None,
        bearer: str = "",
        timeout_s: float | None = None,
    ) -> object:
        """Send a request and return the answer, both as JSON.

        Args:
            method: GET, POST or PUT.
            path: path below the base.
            refusal: returns the error for a refusal.
            body: the JSON to send.
            bearer: secret for the ``Authorization`` header.
            timeout_s: timeout of connecting and of each read; None for :data:`EXCHANGE_TIMEOUT_S`.

        Returns:
            The JSON of the answer; None if it is empty.

        Raises:
            Unreachable: no answer, or the server failed.
            CertificateError: the server's certificate isn't an accepted one; nothing was sent.
            ProtocolError: the answer isn't JSON or is too long.
        """
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Accept": JSON_TYPE, **authorization(bearer)}
        if payload is not None:
            headers["Content-Type"] = JSON_TYPE
        exchange = functools.partial(
            self.exchange, method, path, payload, headers, read_answer, refusal=refusal, timeout_s=timeout_s
        )
        # A cancelled agent doesn't wait for an answer that may take its full timeout to fail.
        answer = await trio.to_thread.run_sync(exchange, abandon_on_cancel=True)
        return parse_json_untrusted(answer) if answer else None

    def exchange(
        self,
        method: str,
        path: str,
        payload: bytes | Sequence[bytes] | None,
        headers: Mapping[str, str],
        read: Callable[[http.client.HTTPResponse], _Result],
        *,
        refusal: Refusal,
        timeout_s: float | None = None,
    ) -> _Result:
        """Run one exchange, and translate its errors. Blocks.

        A payload in pieces isn't joined; ``headers`` have its Content-Length.

        Every exchange with diskcast's servers may be repeated, so one that fails on a kept connection, which the server
        may have closed at that moment, is repeated on a new one.

        Raises:
            Unreachable: no answer, or the server failed.
            CertificateError: the server's certificate isn't an accepted one; nothing was sent.
        """
        timeout_s = timeout_s or EXCHANGE_TIMEOUT_S
        request = functools.partial(self._request, method, path, payload, headers, read, refusal=refusal)
        kept = self._take_idle(timeout_s)
        try:
            if kept is not None:
                with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                    return request(kept)
            return request(self._new_connection(timeout_s))
        except (OSError, http.client.HTTPException) as error:
            untrusted = certificate_error(self.url, error)
            if untrusted is not None:
                raise untrusted from error
            raise Unreachable(f"{self.url}: {str(error) or type(error).__name__}") from error

    def _request(
        self,
        method: str,
        path: str,
        payload: bytes | Sequence[bytes] | None,
        headers: Mapping[str, str],
        read: Callable[[http.client.HTTPResponse], _Result],
        connection: http.client.HTTPConnection,
        *,
        refusal: Refusal,
    ) -> _Result:
        finished = False
        try:
            connection.request(method, self._base + path, body=payload, headers=dict(headers))
            with connection.getresponse() as response:
                if response.status >= 300:
                    detail = problem_from_json_untrusted(response.read(CONTROL_BODY_BYTES_MAX))
                    detail = detail or response.reason
                    finished = response.isclosed()
                    if response.status >= 500:
                        raise Unreachable(f"{self.url}: {response.status} {detail}")
                    raise refusal(response.status, detail)
                result = read(response)
                finished = response.isclosed()
                return result
        finally:
            if finished and len(self._idle) < self._idle_max and connection.sock is not None:
                self._idle.append(connection)
            else:
                connection.close()

    def _new_connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)

    def _take_idle(self, timeout_s: float) -> http.client.HTTPConnection | None:
        """Return the kept connection; None without one, or if the server has closed it."""
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        if connection.sock is None or _has_input(connection.sock):
            connection.close()
            return None
        connection.sock.settimeout(timeout_s)
        return connection


def read_answer(response: http.client.HTTPResponse) -> bytes:
    """Return the body of an answer.

    Raises:
        ProtocolError: it is too long.
    """
    answer = response.read(ANSWER_BYTES_MAX + 1)
    if len(answer) > ANSWER_BYTES_MAX:
        raise ProtocolError(f"the server's answer is longer than {format_bytes(ANSWER_BYTES_MAX)}")
    return answer


def authorization(bearer: str) -> dict[str, str]:
    """Return the header with the bearer; none if it is empty."""
    return {"Authorization": f"Bearer {bearer}"} if bearer else {}


def _has_input(sock: socket.socket) -> bool:
    """Return whether something arrived on an idle connection: at best its end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _close_all(connections: list[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()
