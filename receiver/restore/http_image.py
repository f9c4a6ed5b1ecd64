"""An image's file on a web server, read in ranges while it is restored: no copy of it fits into a live system's memory.

The server isn't trusted: the signature in the image's header decides about the image before a disk is opened, and every
block is checked by the signed manifest. HTTPS hides the image from the network, and a pin names the server.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Final

from protocol.constants import IMAGE_BYTES_MAX
from protocol.errors import ConfigurationError, ImageChangedError, ImageError, ProtocolError
from protocol.image.image_format import PAGE_BYTES, ImageHeader, parse_header_untrusted
from protocol.program.peer_trust import PeerTrust
from protocol.program.pinned_tls import certificate_error
from receiver.restore.image_source import ImageSource

TIMEOUT_S: Final = 30.0
"""Timeout of connecting and of each read: a server that wakes its disks up takes ten seconds."""

RETRY_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
"""Pauses before retries of one read: a restarted server or a pulled cable doesn't end a restore of an hour."""

_FILE_BYTES_MAX: Final = 2 * IMAGE_BYTES_MAX
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_HEADER_CHARACTERS_MAX: Final = 256


class HttpImageBytes:
    """A file behind a URL. Thread-safe: each thread has a connection of its own."""

    def __init__(self, url: str, trust: PeerTrust, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Ask the server for the size of the file.

        Args:
            url: ``https://…`` or ``http://…``.
            trust: certificates that are accepted for ``https``; any if it is empty.
            sleep: waits before a retry.

        Raises:
            ConfigurationError: the URL or a pin is invalid.
            ImageError: the server can't be reached, doesn't have the file, or serves no ranges.
            CertificateError: the server's certificate isn't an accepted one.
        """
        self.name = url
        host, port, self._path, encrypted = _parse_url(url)
        tls = (trust or PeerTrust(any_certificate=True)).context() if encrypted else None
        self._connect: Callable[[], http.client.HTTPConnection] = lambda: (
            http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
            if tls is None
            else http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=tls)
        )
        self._sleep = sleep
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self._version = ""
        self.size_bytes = 0
        try:
            self.read_into(memoryview(bytearray(1)), 0)
        except BaseException:
            self.close()
            raise

    def header(self) -> ImageHeader:
        """Read the header page.

        Raises:
            ImageError: it isn't one of an image, or the server failed.
        """
        page = bytearray(min(PAGE_BYTES, self.size_bytes))
        self.read_into(memoryview(page), 0)
        return parse_header_untrusted(bytes(page))

    def read_into(self, into: memoryview, offset_bytes: int) -> int:
        """Read a range, with retries.

        Raises:
            ImageError: the server doesn't answer any more, or refuses.
            ImageChangedError: the file has changed.
            CertificateError: another server answers.
        """
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                return self._read_once(into, offset_bytes)
            except (OSError, http.client.HTTPException) as error:
                self._drop_connection()
                untrusted = certificate_error(self.name, error)
                if untrusted is not None:
                    raise untrusted from error
                # A server that never answered is most likely a mistyped one.
                if pause_s is None or not self.size_bytes:
                    reason = str(error) or type(error).__name__
                    raise ImageError(
                        f"{self.name} can't be read: {reason}; check the address and the server"
                    ) from error
                self._sleep(pause_s)
        raise AssertionError

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._connections:
            self._connections.pop().close()

    def _read_once(self, into: memoryview, offset_bytes: int) -> int:
        last = offset_bytes + len(into) - 1
        if self.size_bytes:
            last = min(last, self.size_bytes - 1)
        if last < offset_bytes:
            return 0
        headers = {"Range": f"bytes={offset_bytes}-{last}", "Accept-Encoding": "identity"}
        with self._answer(headers) as answer:
            size_bytes = self._checked_size(answer, offset_bytes, last)
            # Not the validator alone: some servers have none.
            version = (answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")[
                :_HEADER_CHARACTERS_MAX
            ]
            if self.size_bytes and (size_bytes, version) != (self.size_bytes, self._version):
                raise ImageChangedError(
                    f"{self.name} was replaced while it was read: start again, and let nothing change the file"
                )
            self.size_bytes, self._version = size_bytes, version
            wanted = into[: last - offset_bytes + 1]
            done = 0
            while done < len(wanted):
                count = answer.readinto(wanted[done:])
                if not count:
                    raise http.client.IncompleteRead(b"", len(wanted) - done)
                done += count
            return done

    def _checked_size(self, answer: http.client.HTTPResponse, first: int, last: int) -> int:
        if answer.status != http.client.PARTIAL_CONTENT:
            raise ImageError(f"{self.name}: {_refusal(answer.status)}")
        try:
            found_first, found_last, size_bytes = parse_content_range_untrusted(
                answer.headers.get("Content-Range", "")
            )
        except ProtocolError as error:
            raise ImageError(f"{self.name}: {error}") from error
        if (found_first, found_last) != (first, last):
            raise ImageError(f"{self.name}: the server sends another range than the requested one")
        return size_bytes

    @contextlib.contextmanager
    def _answer(self, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            self._connections.append(connection)
        try:
            connection.request("GET", self._path, headers=headers)
            with connection.getresponse() as answer:
                yield answer
        except BaseException:
            self._drop_connection()  # with the rest of an answer on it
            raise

    def _drop_connection(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            connection.close()
            with contextlib.suppress(ValueError):
                self._connections.remove(connection)


def open_image_url(url: str, trust: PeerTrust) -> ImageSource:
    """Open an image behind a URL and check its header and manifest, but not its blocks.

    Raises:
        ConfigurationError, CertificateError, ImageError: as :class:`HttpImageBytes` raises.
        ImageFormatError, ImageDamagedError: it isn't an image, or is truncated or altered.
    """
    data = HttpImageBytes(url, trust)
    try:
        return ImageSource(data)
    except BaseException:
        data.close()
        raise


def parse_content_range_untrusted(text: str) -> tuple[int, int, int]:
    """Return the first and last byte and the whole size in a ``Content-Range`` (RFC 9110, section 14.4).

    Raises:
        ProtocolError: it has no such form.
    """
    match = _CONTENT_RANGE.fullmatch(text[:_HEADER_CHARACTERS_MAX])
    if match is None:
        raise ProtocolError("the server's Content-Range is missing or malformed")
    first, last, size_bytes = (int(number) for number in match.groups())
    if not first <= last < size_bytes <= _FILE_BYTES_MAX:
        raise ProtocolError("the server's Content-Range is out of range")
    return first, last, size_bytes


def _parse_url(url: str) -> tuple[str, int, str, bool]:
    """Return host, port, path, and whether the connection is encrypted."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url!r} isn't a URL: {error}") from error
    plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.fragment or not plain:
        raise ConfigurationError(
            f"{url!r} isn't the URL of an image: write for example https://192.0.2.1/images/lab.dci"
        )
    encrypted = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return host, port or (443 if encrypted else 80), path, encrypted


def _refusal(status: int) -> str:
    if status == http.client.OK:
        return "the server sends the whole file, but not a part of it: use one that supports ranges, as nginx does"
    if 300 <= status < 400:
        return f"the server redirects to another address ({status}): give that one"
    if status == http.client.NOT_FOUND:
        return "the server has no such file (404): check the path"
    return f"the server refuses the request ({status})"
