"""HTTP on a connection that is kept between exchanges, as an agent keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse

from protocol.program.pinned_tls import unpinned_context

_TLS = unpinned_context()


class KeptConnection:
    """A connection of one simulated machine to one server."""

    def __init__(self, url: str) -> None:
        self._address = urllib.parse.urlsplit(url)
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.handshake_count = 0

    async def exchange(self, method: str, path: str, payload: bytes, bearer: str = "") -> tuple[int, bytes]:
        """Send a request; return the status and the body. A kept connection that has ended is replaced once.

        Raises:
            OSError: no answer.
        """
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._address.netloc}\r\nContent-Type: application/json\r\n"
        )
        if bearer:
            head += f"Authorization: Bearer {bearer}\r\n"
        request = f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload
        if self._stream is not None:
            with contextlib.suppress(OSError, EOFError):
                return await self._try(self._stream, request)
            self.close()
        self.handshake_count += 1
        tls = _TLS if self._address.scheme == "https" else None
        self._stream = await asyncio.open_connection(self._address.hostname, self._address.port, ssl=tls)
        try:
            return await self._try(self._stream, request)
        except EOFError as error:
            self.close()
            raise ConnectionError("the connection ended") from error

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    async def _try(
        self, stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes
    ) -> tuple[int, bytes]:
        reader, writer = stream
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status, *lines = head.split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection") == "close":
            self.close()
        return int(status.split()[1]), body
