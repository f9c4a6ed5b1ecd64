"""Images behind HTTP(S) and S3: listing, description and content, through fsspec.

All calls block for a limited time: connecting and each read have timeouts. Credentials come from the usual places: for
S3, endpoint, region and keys from ``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE`` and ``~/.aws``; for HTTP, from the URL or
``~/.netrc`` (``NETRC``), and proxies from ``HTTPS_PROXY``.
"""

from __future__ import annotations

import email.utils
import enum
import html.parser
import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from protocol.constants import MIB
from protocol.errors import DiskcastError
from protocol.image.image_format import PAGE_BYTES, check_file_bytes, parse_header_untrusted
from protocol.image.manifest_format import HEAD_BYTES, parse_head_untrusted
from sender.imaging.image_signature import ImageSignature
from sender.library.image_probe import FoundImage
from sender.library.location import Location, below
from sender.library.remote_addresses import RedirectedError, open_public_socket, origin_of, origins_of
from sender.library.remote_errors import RemoteError, translated
from sender.library.remote_reader import CONNECT_S, READ_S, RemoteReader, RemoteStatus, read_up_to

LISTING_BYTES_MAX: Final = 4 * MIB
"""Size of a directory page with 30,000 links."""

LISTED_MAX: Final = 1000
"""Images of a prefix: each costs a request at every scan."""


class _Access(enum.Enum):
    S3 = "s3"
    HTTP = "http"
    """A server of the configuration."""
    PUBLIC_HTTP = "public http"
    """Any other server: at public addresses only, which excludes the usual proxies."""


class RemoteFiles:
    """Access to HTTP(S) servers and S3. Thread-safe."""

    def __init__(self, configured: Iterable[str] = ()) -> None:
        """Create the object without connecting or loading a library.

        Args:
            configured: URLs whose servers may have any address.
        """
        self._configured = origins_of(configured)
        self._lock = threading.Lock()
        self._systems: dict[_Access, Any] = {}

    def list_images(self, prefix: Location) -> list[Location]:
        """Return the images directly below a prefix, by name, at most :data:`LISTED_MAX`.

        Raises:
            RemoteError: the prefix can't be listed.
        """
        with translated(prefix):
            system = self._system(prefix)
            if prefix.scheme == "s3":
                system.invalidate_cache()
                path = prefix.url.removeprefix("s3://")
                entries = system.ls(path.rstrip("/"), detail=True, refresh=True)
                names = [str(entry["name"]) for entry in entries if entry["type"] == "file"]
                found = [below(prefix, f"s3://{name}") for name in names if name.startswith(path)]
            else:
                with system.open(prefix.url, "rb", block_size=0) as page:
                    text = read_up_to(page, LISTING_BYTES_MAX).decode("utf-8", "replace")
                links = _Links()
                links.feed(text)
                found = [below(prefix, link) for link in links.targets]
        unique = {location.url: location for location in found if location is not None}
        return sorted(unique.values(), key=lambda location: location.url)[:LISTED_MAX]

    def status(self, location: Location) -> RemoteStatus:
        """Return the server's description of a file.

        Raises:
            RemoteError: the file doesn't exist, or the server doesn't answer.
        """
        with translated(location):
            system = self._system(location)
            if location.scheme == "s3":
                system.invalidate_cache()
                info = system.info(location.url, refresh=True)
                modified_at = info.get("LastModified")
                modified = modified_at.isoformat() if isinstance(modified_at, datetime) else ""
            else:
                info = system.info(location.url)
                modified = str(info.get("Last-Modified", ""))
                modified_at = _http_time(modified)
            size = info.get("size")
        if not isinstance(size, int):
            raise RemoteError(
                f"{location.shown}: the server doesn't send the file's length; serve it as a plain file",
                transient=False,
            )
        return RemoteStatus(size, str(info.get("ETag", ""))[:256], modified[:64], modified_at)

    def describe(self, location: Location, status: RemoteStatus) -> FoundImage:
        """Read the image's header and the head of its manifest, in one request.

        The rest is checked when the image is fetched.

        Raises:
            RemoteError, RemoteChangedError: the file can't be read.
            ImageFormatError, ImageDamagedError: the file isn't an image, or is incomplete.
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
            signature=ImageSignature.of(header),
        )

    def open(self, location: Location, status: RemoteStatus) -> RemoteReader:
        """Open the file of this status for reading.

        Raises:
            RemoteError, RemoteChangedError: the file can't be opened, or has another status.
        """
        return RemoteReader(self._system(location), location, status)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            self._systems.clear()

    def _system(self, location: Location) -> Any:
        access = _Access.S3
        if location.scheme != "s3":
            access = _Access.HTTP if origin_of(location.url) in self._configured else _Access.PUBLIC_HTTP
        with self._lock:
            if access not in self._systems:
                self._systems[access] = _make_system(access)
            return self._systems[access]


def _make_system(access: _Access) -> Any:
    import fsspec  # type: ignore[import-untyped]

    if access is _Access.S3:
        return fsspec.filesystem(
            "s3",
            skip_instance_cache=True,
            use_listings_cache=False,
            default_fill_cache=False,
            config_kwargs={
                "connect_timeout": CONNECT_S,
                "read_timeout": READ_S,
                # The fetch retries, and so does s3fs: botocore's own retries would multiply theirs.
                "retries": {"total_max_attempts": 1},
            },
        )
    import aiohttp

    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_refuse_redirect)

    async def get_client(**options: Any) -> aiohttp.ClientSession:
        factory = open_public_socket if access is _Access.PUBLIC_HTTP else None
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=factory), **options)

    return fsspec.filesystem(
        "http",
        get_client=get_client,
        skip_instance_cache=True,
        encoded=True,
        client_kwargs={
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S),
            "headers": {"Accept-Encoding": "identity", "User-Agent": "diskcast"},
            "trust_env": True,
            "trace_configs": [tracing],
        },
    )


async def _refuse_redirect(*_: object) -> None:
    raise RedirectedError("redirected")


class _Links(html.parser.HTMLParser):
    """A parser that collects the targets of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the target of a link."""
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def _http_time(text: str) -> datetime | None:
    try:
        return email.utils.parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
