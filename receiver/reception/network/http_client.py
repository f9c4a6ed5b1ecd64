"""HTTP client of the agent: one connection per exchange, bounded in time and size, in a thread."""

from __future__ import annotations

import functools
import http.client
import json
import urllib.parse
from collections.abc import Callable, Mapping
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
from protocol.shared.units import format_bytes

EXCHANGE_TIMEOUT_S: Final = 10.0
"""Timeout of connecting and of each read: even a sender that transmits at full rate answers within milliseconds."""

ANSWER_BYTES_MAX: Final = MIB
"""Longest answer: a daemon's list of a thousand casts."""

_Result = TypeVar("_Result")

Refusal = Callable[[int, str], Exception]
"""A function that returns the error for a status from 300 to 499 and its detail."""

_CONNECTIONS: Final[Mapping[str, tuple[type[http.client.HTTPConnection], int]]] = {
    "http": (http.client.HTTPConnection, 80)
}
"""Connection class and default port by URL scheme; TLS would be added here."""


class Unreachable(Exception):  # noqa: N818 - a state between retries, never shown as an error
    """A request without an answer; a retry may succeed."""


class HttpPeer:
    """A server at one base URL."""

    def __init__(self, url: str, *, server_kind: str, example: str, base: str = API_BASE) -> None:
        """Parse the base URL ``SCHEME://HOST:PORT``.

        Args:
            url: the URL, from the operator or from another program.
            server_kind: the kind of server, for the error message.
            example: a valid URL, for the error message.
            base: prefix of every path.

        Raises:
            ConfigurationError: the URL is invalid.
        """
        self.url = url.rstrip("/")
        try:
            parts = urllib.parse.urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigurationError(f"{url!r} isn't a URL: {error}; write for example {example}") from error
        if parts.scheme not in _CONNECTIONS or not host or parts.path or parts.query or parts.username:
            raise ConfigurationError(f"{url!r} isn't the URL of {server_kind}: write for example {example}")
        self._connection, default_port = _CONNECTIONS[parts.scheme]
        self._host = host
        self._base = base
        self._port = port or default_port

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
            ProtocolError: the answer isn't JSON or is too long.
        """
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Accept": JSON_TYPE}
        if payload is not None:
            headers["Content-Type"] = JSON_TYPE
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        exchange = functools.partial(
            self.exchange, method, path, payload, headers, self._read, refusal=refusal, timeout_s=timeout_s
        )
        # A cancelled agent doesn't wait for an answer that may take its full timeout to fail.
        answer = await trio.to_thread.run_sync(exchange, abandon_on_cancel=True)
        return parse_json_untrusted(answer) if answer else None

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        answer = response.read(ANSWER_BYTES_MAX + 1)
        if len(answer) > ANSWER_BYTES_MAX:
            raise ProtocolError(f"the answer of {self.url} is longer than {format_bytes(ANSWER_BYTES_MAX)}")
        return answer

    def exchange(
        self,
        method: str,
        path: str,
        payload: bytes | None,
        headers: Mapping[str, str],
        read: Callable[[http.client.HTTPResponse], _Result],
        *,
        refusal: Refusal,
        timeout_s: float | None = None,
    ) -> _Result:
        """Run one exchange on a new connection, and translate its errors. Blocks.

        Raises:
            Unreachable: no answer, or the server failed.
        """
        connection = self._connection(self._host, self._port, timeout=timeout_s or EXCHANGE_TIMEOUT_S)
        try:
            connection.request(method, self._base + path, body=payload, headers=dict(headers))
            with connection.getresponse() as response:
                if response.status >= 300:
                    detail = problem_from_json_untrusted(response.read(CONTROL_BODY_BYTES_MAX))
                    detail = detail or response.reason
                    if response.status >= 500:
                        raise Unreachable(f"{self.url}: {response.status} {detail}")
                    raise refusal(response.status, detail)
                return read(response)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.url}: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()
