"""Images behind HTTP(S) and S3: what is there, what it is, and its bytes, by fsspec.

Everything here blocks, for a bounded time: connecting and each read have limits. Credentials come from where the
systems' own tools take them: S3's endpoint, region and keys from ``AWS_ENDPOINT_URL``, ``AWS_REGION``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE`` and ``~/.aws``; HTTP's from the URL or ``~/.netrc``
(``NETRC``), its proxies from ``HTTPS_PROXY``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import html.parser
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from protocol.constants import MIB
from protocol.errors import DiskcastError, ImageError
from protocol.image.image_format import PAGE_BYTES, check_file_bytes, parse_header_untrusted
from protocol.image.manifest import HEAD_BYTES, parse_head_untrusted
from sender.library.image_probe import FoundImage
from sender.library.location import Location, below

if TYPE_CHECKING:
    import aiohttp

CONNECT_S: Final = 10.0
READ_S: Final = 30.0
"""A server that sends nothing for so long has stopped."""

REQUEST_S: Final = 300.0
"""For one piece, head or listing: what takes longer isn't a server to image a room from."""

LISTING_BYTES_MAX: Final = 4 * MIB
"""A directory page with 30,000 links."""

LISTED_MAX: Final = 1000
"""Images of one prefix: each costs a request at every look."""


class RemoteError(ImageError):
    """A remote image can't be had.

    Attributes:
        passing: trying again may help.
    """

    exit_code = ImageError.exit_code

    def __init__(self, text: str, *, passing: bool) -> None:
        super().__init__(text)
        self.passing = passing


class RemoteChangedError(ImageError):
    """The file behind the URL was replaced while it was read."""

    exit_code = ImageError.exit_code


class _NoRangesError(Exception):
    """The server sends a file from its start only."""


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteStatus:
    """What a server says of a file without sending it.

    Attributes:
        tag: its ETag, or empty.
        modified: when it was last written, in the server's words.
    """

    size_bytes: int
    tag: str
    modified: str
    modified_at: datetime | None

    @property
    def version(self) -> str:
        """Another one means other bytes."""
        return f"{self.size_bytes} {self.tag or self.modified}"


class RemoteFiles:
    """The systems that images are fetched from; any thread may call."""

    def __init__(self) -> None:
        """Connects to nothing yet, and loads no library."""
        self._lock = threading.Lock()
        self._systems: dict[str, Any] = {}

    def list_images(self, prefix: Location) -> list[Location]:
        """The images directly below a prefix, by name, :data:`LISTED_MAX` at most.

        Raises:
            RemoteError: it can't be listed.
        """
        with _translated(prefix):
            system = self._system(prefix)
            if prefix.scheme == "s3":
                system.invalidate_cache()
                path = prefix.url.removeprefix("s3://")
                entries = system.ls(path.rstrip("/"), detail=True, refresh=True)
                names = [str(entry["name"]) for entry in entries if entry["type"] == "file"]
                found = [below(prefix, f"s3://{name}") for name in names if name.startswith(path)]
            else:
                with system.open(prefix.url, "rb", block_size=0) as page:
                    text = _read_some(page, LISTING_BYTES_MAX).decode("utf-8", "replace")
                links = _Links()
                links.feed(text)
                found = [below(prefix, link) for link in links.targets]
        unique = {location.url: location for location in found if location is not None}
        return sorted(unique.values(), key=lambda location: location.url)[:LISTED_MAX]

    def status(self, location: Location) -> RemoteStatus:
        """What the server says of a file.

        Raises:
            RemoteError: it isn't there, or can't be asked.
        """
        with _translated(location):
            system = self._system(location)
            if location.scheme == "s3":
                system.invalidate_cache()
                said = system.info(location.url, refresh=True)
                modified_at = said.get("LastModified")
                modified = modified_at.isoformat() if isinstance(modified_at, datetime) else ""
            else:
                said = system.info(location.url)
                modified = str(said.get("Last-Modified", ""))
                modified_at = _http_time(modified)
            size = said.get("size")
        if not isinstance(size, int):
            raise RemoteError(
                f"{location.shown}: the server doesn't say how long the file is; serve it as a plain file",
                passing=False,
            )
        return RemoteStatus(size, str(said.get("ETag", ""))[:256], modified[:64], modified_at)

    def describe(self, location: Location, status: RemoteStatus) -> FoundImage:
        """What the image says of itself in its header and the head of its manifest, read in one request.

        The rest is checked when it is fetched.

        Raises:
            RemoteError, RemoteChangedError: it can't be read.
            ImageFormatError, ImageDamagedError: it isn't an image, or not a whole one.
        """
        with self.open(location, status) as file:
            start = file.read(0, min(PAGE_BYTES + HEAD_BYTES, status.size_bytes))
        try:
            header = parse_header_untrusted(start[:PAGE_BYTES])
            check_file_bytes(header, status.size_bytes)
            head, name = parse_head_untrusted(start[PAGE_BYTES:])
        except DiskcastError as error:
            raise type(error)(f"{location.shown}: {error}") from error
        return FoundImage(
            image_id=header.image_id.hex(),
            name=name,
            raw_bytes=head.raw_bytes,
            stored_bytes=status.size_bytes,
            block_bytes=head.block_bytes,
            packed_at=status.modified_at,
        )

    def open(self, location: Location, status: RemoteStatus) -> RemoteReader:
        """A reader of the file's bytes, as long as it has the status that was seen.

        Raises:
            RemoteError, RemoteChangedError: it can't be opened.
        """
        return RemoteReader(self._system(location), location, status)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            self._systems.clear()

    def _system(self, location: Location) -> Any:
        kind = "s3" if location.scheme == "s3" else "http"
        with self._lock:
            if kind not in self._systems:
                self._systems[kind] = _make_system(kind)
            return self._systems[kind]


def _make_system(kind: str) -> Any:
    import fsspec  # type: ignore[import-untyped]

    if kind == "s3":
        return fsspec.filesystem(
            "s3",
            skip_instance_cache=True,
            use_listings_cache=False,
            default_fill_cache=False,
            config_kwargs={
                "connect_timeout": CONNECT_S,
                "read_timeout": READ_S,
                # s3fs repeats what may pass, a fetch repeats again, and both would multiply.
                "retries": {"total_max_attempts": 1},
            },
        )
    import aiohttp

    return fsspec.filesystem(
        "http",
        skip_instance_cache=True,
        encoded=True,
        client_kwargs={
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S),
            "headers": {"Accept-Encoding": "identity", "User-Agent": "diskcast"},
            "trust_env": True,
        },
    )


class RemoteReader:
    """Reads ranges; where the server has none, everything from the start, in order. A context manager."""

    def __init__(self, system: Any, location: Location, status: RemoteStatus) -> None:
        """Use :meth:`RemoteFiles.open`."""
        self._system = system
        self._location = location
        self._status = status
        self._stream: Any = None
        self._stream_at = 0
        self._file = self._open_ranges()

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset``; fast for offsets that follow each other.

        Raises:
            RemoteError: the server or the way to it failed.
            RemoteChangedError: the file isn't any more the one that was opened.
        """
        with _translated(self._location):
            if self._stream is None:
                try:
                    data = self._read_range(offset, count)
                except _NoRangesError:
                    self._open_stream()
            if self._stream is not None:
                data = self._read_stream(offset, count)
        if len(data) != count:
            raise RemoteChangedError(f"{self._location.shown} became shorter while it was read")
        return data

    def _open_ranges(self) -> Any:
        with _translated(self._location):
            options: dict[str, Any] = {"cache_type": "none", "block_size": MIB}
            if self._location.scheme == "s3":
                file = self._system.open(self._location.url, "rb", **options)  # its reads say If-Match
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
        """Headers by which the server refuses to send a file that was replaced; many don't know them."""
        if self._status.tag and not self._status.tag.startswith("W/"):
            return {"If-Match": self._status.tag}
        return {"If-Unmodified-Since": self._status.modified} if self._status.modified_at else {}

    def _read_range(self, offset: int, count: int) -> bytes:
        try:
            self._file.seek(offset)
            return bytes(self._file.read(count))
        except ValueError as error:
            if "range requests" in str(error):
                raise _NoRangesError from error
            raise

    def _open_stream(self) -> None:
        self._stream = self._system.open(self._location.url, "rb", block_size=0, headers=self._conditions())
        self._stream_at = 0

    def _read_stream(self, offset: int, count: int) -> bytes:
        if offset < self._stream_at:
            self._stream.close()
            self._open_stream()
        while self._stream_at < offset:
            skipped = len(_read_some(self._stream, min(offset - self._stream_at, MIB)))
            if not skipped:
                break
            self._stream_at += skipped
        data = _read_some(self._stream, count)
        self._stream_at += len(data)
        return data

    def close(self) -> None:
        """Let the connection go."""
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


class _Links(html.parser.HTMLParser):
    """The targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A link's target is kept."""
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def _read_some(stream: Any, count: int) -> bytes:
    """``count`` bytes of a stream that may give fewer at a time; fewer only at its end."""
    parts: list[bytes] = []
    missing = count
    while missing:
        part = stream.read(missing)
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _http_time(text: str) -> datetime | None:
    try:
        return email.utils.parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


# -- what went wrong --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _translated(location: Location) -> Iterator[None]:
    """Errors of the libraries in our words; theirs quote URLs with credentials."""
    try:
        yield
    except (DiskcastError, _NoRangesError):
        raise
    except Exception as error:  # noqa: BLE001  each system's library has its own tree
        raise _in_our_words(location.shown, error) from None


_PASSING_CODES: Final = frozenset(
    {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "500", "502", "503", "504"}
)

_ACCESS: Final = (
    "check the credentials (HTTP: the URL or ~/.netrc; "
    "S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws)"
)


def _in_our_words(shown: str, error: BaseException) -> DiskcastError:
    import aiohttp

    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, aiohttp.ClientError | OSError):
        error = cause  # fsspec says so of every failure
    match error:
        case aiohttp.ClientResponseError():
            return _of_status(shown, error.status)
        case FileNotFoundError():
            return _of_status(shown, 404)
        case PermissionError():
            return _of_status(shown, 403)
        case TimeoutError():  # fsspec's and aiohttp's are such
            return RemoteError(f"{shown}: the server doesn't answer in time", passing=True)
        case aiohttp.ClientError():
            return _of_http(shown, error)
    return _of_s3(shown, error, cause)


def _of_http(shown: str, error: aiohttp.ClientError) -> DiskcastError:
    import aiohttp

    match error:
        case aiohttp.ClientConnectorCertificateError():
            return RemoteError(
                f"{shown}: the server's certificate isn't trusted; add its authority to this machine's (SSL_CERT_FILE)",
                passing=False,
            )
        case aiohttp.InvalidURL():
            return RemoteError(f"{shown} isn't a URL", passing=False)
        case aiohttp.ClientConnectorError():
            text = error.os_error.strerror or "no connection"
            return RemoteError(f"{shown}: the server can't be reached: {text}", passing=True)
    return RemoteError(f"{shown}: the connection broke ({type(error).__name__})", passing=True)


def _of_s3(shown: str, error: BaseException, cause: BaseException | None) -> DiskcastError:
    kind = type(error).__name__
    response = getattr(cause, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))[:64]
    if kind == "FileExpired" or code in ("PreconditionFailed", "412"):
        return RemoteChangedError(f"{shown} was replaced while it was read")
    if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return RemoteError(f"{shown}: there are no credentials for it; {_ACCESS}", passing=False)
    if code in _PASSING_CODES:
        return RemoteError(f"{shown}: the server answers {code}", passing=True)
    if code:
        return RemoteError(f"{shown}: the server refuses: {code}", passing=False)
    return RemoteError(f"{shown} can't be read ({kind})", passing=True)


def _of_status(shown: str, status: int) -> DiskcastError:
    match status:
        case 412:
            return RemoteChangedError(f"{shown} was replaced while it was read")
        case 401 | 403:
            return RemoteError(f"{shown}: access is refused ({status}); {_ACCESS}", passing=False)
        case 404 | 410:
            return RemoteError(
                f"{shown} isn't there ({status}); put it there, or correct the URL", passing=False
            )
    return RemoteError(
        f"{shown}: the server answers with status {status}",
        passing=status >= 500 or status in (408, 416, 425, 429),
    )
