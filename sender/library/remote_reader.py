"""A remote file: its status, and a reader of its bytes."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self

from protocol.constants import MIB
from sender.library.location import Location
from sender.library.remote_errors import NoRangesError, RemoteChangedError, translated

CONNECT_S: Final = 10.0
READ_S: Final = 30.0
"""Timeout of a read: a server that sends nothing for so long has stopped."""

REQUEST_S: Final = 300.0
"""Timeout of a request for a piece, a head or a listing: a slower server is no source for a room."""


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteStatus:
    """A server's description of a file.

    Attributes:
        size_bytes: length of the file.
        tag: its ETag, or empty.
        modified: time of the last change, as text of the server.
        modified_at: the same time; None if it can't be parsed.
    """

    size_bytes: int
    tag: str
    modified: str
    modified_at: datetime | None

    @property
    def version(self) -> str:
        """Version of the content: a different one means different bytes."""
        return f"{self.size_bytes} {self.tag or self.modified}"


class RemoteReader:
    """A reader of ranges; without server support, of the whole file from its start. A context manager."""

    def __init__(self, system: Any, location: Location, status: RemoteStatus) -> None:
        """Use :meth:`RemoteFiles.open`."""
        self._system = system
        self._location = location
        self._status = status
        self._stream: Any = None
        self._stream_at = 0
        self._file = self._open_ranges()

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes from ``offset``; fast for consecutive offsets.

        Raises:
            RemoteError: the server or the connection failed.
            RemoteChangedError: the file was replaced after it was opened.
        """
        with translated(self._location):
            if self._stream is None:
                try:
                    data = self._read_range(offset, count)
                except NoRangesError:
                    self._open_stream()
            if self._stream is not None:
                data = self._read_stream(offset, count)
        if len(data) != count:
            raise RemoteChangedError(f"{self._location.shown} became shorter while it was read")
        return data

    def _open_ranges(self) -> Any:
        with translated(self._location):
            options: dict[str, Any] = {"cache_type": "none", "block_size": MIB}
            if self._location.scheme == "s3":
                file = self._system.open(self._location.url, "rb", **options)  # its reads send If-Match
                if (
                    str(file.details.get("ETag", "")) != self._status.tag
                    or file.size != self._status.size_bytes
                ):
                    raise RemoteChangedError(f"{self._location.shown} was replaced")
                return file
            import aiohttp

            options["timeout"] = aiohttp.ClientTimeout(
                total=REQUEST_S, sock_connect=CONNECT_S, sock_read=READ_S
            )
            return self._system.open(
                self._location.url,
                "rb",
                size=self._status.size_bytes,
                headers=self._conditions(),
                **options,
            )

    def _conditions(self) -> dict[str, str]:
        """Return headers that make the server refuse a replaced file; many servers ignore them."""
        if self._status.tag and not self._status.tag.startswith("W/"):
            return {"If-Match": self._status.tag}
        return {"If-Unmodified-Since": self._status.modified} if self._status.modified_at else {}

    def _read_range(self, offset: int, count: int) -> bytes:
        try:
            self._file.seek(offset)
            return bytes(self._file.read(count))
        except ValueError as error:
            if "range requests" in str(error):
                raise NoRangesError from error
            raise

    def _open_stream(self) -> None:
        self._stream = self._system.open(self._location.url, "rb", block_size=0, headers=self._conditions())
        self._stream_at = 0

    def _read_stream(self, offset: int, count: int) -> bytes:
        if offset < self._stream_at:
            self._stream.close()
            self._open_stream()
        while self._stream_at < offset:
            skipped = len(read_up_to(self._stream, min(offset - self._stream_at, MIB)))
            if not skipped:
                break
            self._stream_at += skipped
        data = read_up_to(self._stream, count)
        self._stream_at += len(data)
        return data

    def close(self) -> None:
        """Close the connection."""
        for file in (self._file, self._stream):
            if file is not None:
                with contextlib.suppress(Exception):
                    file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_up_to(stream: Any, count: int) -> bytes:
    """Return ``count`` bytes of a stream that may return fewer per read; fewer only at its end."""
    parts: list[bytes] = []
    missing = count
    while missing:
        part = stream.read(missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
