"""A client of the daemon's API: sequential requests, translated errors, safe retries."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import ssl
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
import pydantic

from protocol.errors import ConfigurationError, DiskcastError, ServerRefusedError, ServerUnreachableError
from protocol.program.peer_trust import PeerTrust, is_loopback_host
from protocol.program.pinned_tls import certificate_error

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

T = TypeVar("T")
Query = Mapping[str, str | int | bool | None]

API_PREFIX: Final = "/api/v1"
PAGE_COUNT_MAX: Final = 500
"""Items per page: the API's own limit."""
EVENTS_SILENCE_S: Final = 40.0
"""Silence after which a stream of events is dead: the daemon sends a comment every 15 s."""

_CONNECT_TIMEOUT_S: Final = 5.0
_RESPONSE_TIMEOUT_S: Final = 30.0
"""Longer than the daemon's own timeout for its database, 10 s."""
_RETRY_DELAYS_S: Final = (0.25, 0.5, 1.0, 2.0)
"""A restarted daemon responds within seconds."""
_RESPONSE_BYTES_MAX: Final = 64 << 20
"""A page of 500 machines with their inventories takes a few MB."""
_FIELD_ERRORS_MAX: Final = 20
_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")
"""The error number in front of the system's text for it."""


class Client:
    """A client of one daemon's API.

    Every method raises :class:`ServerUnreachableError` if there is no valid response, :class:`CertificateError` if
    another program answers, which gets nothing, and :class:`ServerRefusedError` if the daemon refuses. All requests are
    retried after a broken connection: reads, changes and removals are idempotent, and a creation carries a key by which
    the daemon recognizes its repetition.

    Args:
        server: URL of the daemon, without a path; plain HTTP only for a daemon on this machine.
        token: secret of a token; None if the daemon requires none.
        trust: certificates that are accepted; by default those of the system's authorities.
    """

    def __init__(self, server: str, token: str | None, trust: PeerTrust | None = None) -> None:
        self.server = checked_url(server)
        self._has_token = token is not None
        self._http = httpx.Client(
            verify=client_tls(self.server, trust),
            base_url=self.server + API_PREFIX,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(_RESPONSE_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            # Ignore proxies and .netrc of the environment: a token must go to the daemon and nowhere else.
            trust_env=False,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, kind: type[T], query: Query | None = None) -> T:
        """Return one record."""
        return self._decode(kind, self._request("GET", path, query=query))

    def listed(self, path: str, kind: type[T], query: Query | None = None) -> Iterator[T]:
        """Yield the items of a list; pages are requested as they are consumed."""
        cursor: str | None = None
        while True:
            page = self._request(
                "GET", path, query={"limit": PAGE_COUNT_MAX, **(query or {}), "cursor": cursor}
            )
            items = page.get("items") if isinstance(page, dict) else None
            yield from self._decode(list[kind], items)  # type: ignore[valid-type]
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def create(
        self,
        path: str,
        kind: type[T],
        body: Mapping[str, object] | None = None,
        *,
        csv: bytes | None = None,
    ) -> T:
        """Create a record once, even if it takes several requests."""
        response = self._request("POST", path, body=body, csv=csv, key=uuid.uuid4().hex)
        return self._decode(kind, response)

    def order(self, path: str, kind: type[T], body: Mapping[str, object] | None = None) -> T:
        """Send an idempotent command, such as to pause."""
        return self._decode(kind, self._request("POST", path, body=body))

    def change(self, path: str, kind: type[T], body: Mapping[str, object]) -> T:
        """Change the fields in ``body``."""
        return self._decode(kind, self._request("PATCH", path, body=body))

    def put(self, path: str, kind: type[T], body: Mapping[str, object]) -> T:
        """Replace a record."""
        return self._decode(kind, self._request("PUT", path, body=body))

    def put_bytes(self, path: str, kind: type[T], content: bytes) -> T:
        """Replace a record by the content of a file."""
        return self._decode(kind, self._request("PUT", path, part=content))

    def put_part(self, path: str, kind: type[T], offset: int, part: bytes) -> T:
        """Send a part of a file that starts at ``offset``; the daemon ignores one that it has."""
        return self._decode(kind, self._request("PUT", path, query={"offset": offset}, part=part))

    def remove(self, path: str) -> None:
        """Remove a record; after a broken connection a missing record counts as removed."""
        self._request("DELETE", path, accept_missing=True)

    @contextlib.contextmanager
    def stream(
        self,
        path: str,
        query: Query | None = None,
        *,
        silence_s: float = _RESPONSE_TIMEOUT_S,
        first_byte: int = 0,
    ) -> Iterator[Any]:
        """Open a streamed response, an ``httpx.Response``; of a file, the part from ``first_byte``."""
        timeout = httpx.Timeout(silence_s, connect=_CONNECT_TIMEOUT_S)
        try:
            headers = {"Range": f"bytes={first_byte}-"} if first_byte else {}
            with self._http.stream(
                "GET", path, params=_parameters(query), timeout=timeout, headers=headers
            ) as response:
                if response.status_code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
                    raise self._refusal(response, _read_bounded(response))
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, object] | None = None,
        csv: bytes | None = None,
        part: bytes | None = None,
        key: str | None = None,
        accept_missing: bool = False,
    ) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        if csv is not None:
            headers["Content-Type"] = "text/csv; charset=utf-8"
        if part is not None:
            headers["Content-Type"] = "application/octet-stream"
        content_sent = csv if part is None else part
        interrupted = False
        for delay_s in (*_RETRY_DELAYS_S, None):
            try:
                with self._http.stream(
                    method, path, params=_parameters(query), json=body, content=content_sent, headers=headers
                ) as response:
                    content = _read_bounded(response)
            except httpx.TransportError as error:
                # Without a listener nothing was sent: fail at once instead of waiting.
                no_listener = isinstance(
                    error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol
                )
                if delay_s is None or (no_listener and not interrupted):
                    raise self._unreachable(error) from error
                interrupted = True
                time.sleep(delay_s)
                continue
            if interrupted and accept_missing and response.status_code == httpx.codes.NOT_FOUND:
                return None
            if not response.is_success:
                raise self._refusal(response, content)
            return self._json(content)
        raise AssertionError("the last attempt returns or raises")

    def _json(self, content: bytes) -> Any:
        if not content:
            return None
        try:
            return json.loads(content)
        except ValueError as error:
            raise self._invalid_response("not JSON") from error

    def _decode(self, kind: type[T], value: object) -> T:
        try:
            decoded: T = _adapter(kind).validate_python(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the response"
            raise self._invalid_response(f"{where}: {first['msg']}") from error
        return decoded

    def _invalid_response(self, reason: str) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"invalid response from {self.server} ({reason}): check that --server is a diskcast daemon of the same "
            "version as this command"
        )

    def _unreachable(self, error: httpx.TransportError) -> DiskcastError:
        untrusted = certificate_error(self.server, error)
        if untrusted is not None:
            return untrusted
        timed_out = isinstance(error, httpx.TimeoutException)
        reason = "timed out" if timed_out else _ERRNO.sub("", str(error)).strip()
        return ServerUnreachableError(
            f"no response from the daemon at {self.server} ({reason or type(error).__name__}): check that "
            "`diskcast serve` runs there, or choose another daemon with --server or DISKCAST_SERVER"
        )

    def _refusal(self, response: httpx.Response, content: bytes) -> DiskcastError:
        try:
            problem = json.loads(content)
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            return self._invalid_response(f"HTTP {response.status_code} without a reason")
        text = str(problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}")
        errors = problem.get("errors")
        if isinstance(errors, list):
            text = "; ".join([text, *(error for error in _field_errors(errors) if error not in text)])
        if response.status_code == httpx.codes.UNAUTHORIZED and not self._has_token:
            text += " (set --token-file, DISKCAST_TOKEN_FILE or DISKCAST_TOKEN)"
        refused = ServerRefusedError(text)
        refused.details = {
            "status": response.status_code,
            "request_id": str(problem.get("instance") or response.headers.get("X-Request-Id", "")),
        }
        return refused


def to_json(record: object) -> Any:
    """Return a record as the API's JSON."""
    return _adapter(type(record)).dump_python(record, mode="json")


_adapters: Final[dict[Any, pydantic.TypeAdapter[Any]]] = {}


def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """Return the cached adapter of a type; creating one takes milliseconds."""
    if kind not in _adapters:
        _adapters[kind] = pydantic.TypeAdapter(kind)
    return _adapters[kind]


def checked_url(server: str) -> str:
    """Return the URL of a daemon without a slash at its end.

    Raises:
        ConfigurationError: it isn't one, or it would send a token unencrypted.
    """
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise ConfigurationError(
            f"--server {server!r} isn't a URL ({error}): use https://HOST:PORT"
        ) from error
    if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/") or url.userinfo:
        raise ConfigurationError(
            f"--server {server!r} isn't the URL of a daemon: use a URL such as http://127.0.0.1:7400"
        )
    if url.scheme == "http" and not is_loopback_host(url.host):
        raise ConfigurationError(
            f"--server {server!r} isn't encrypted, and everybody on the network could read the token: use https://, "
            "and --pin with the pin that the daemon prints"
        )
    return str(url).rstrip("/")


def client_tls(server: str, trust: PeerTrust | None) -> ssl.SSLContext | bool:
    """Return the TLS context of a client; reading the system's authorities takes tens of milliseconds."""
    if not server.startswith("https:"):
        return False
    return trust.context() if trust else ssl.create_default_context()


def _parameters(query: Query | None) -> dict[str, str | int | bool]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _read_bounded(response: httpx.Response) -> bytes:
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > _RESPONSE_BYTES_MAX:
            raise ServerUnreachableError(
                f"response of {response.url.host} exceeds {_RESPONSE_BYTES_MAX >> 20} MiB: "
                "check that --server is a diskcast daemon"
            )
    return bytes(content)


def _field_errors(errors: Iterable[object]) -> list[str]:
    rows = [error for error in errors if isinstance(error, dict)]
    texts = [f"{row.get('field', '')}: {row.get('message', '')}" for row in rows[:_FIELD_ERRORS_MAX]]
    return texts + ([f"and {len(rows) - _FIELD_ERRORS_MAX} more"] if len(rows) > _FIELD_ERRORS_MAX else [])


@dataclasses.dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream."""

    name: str
    data: dict[str, Any]


def server_events(lines: Iterable[str]) -> Iterator[ServerEvent | None]:
    """Yield the events of a ``text/event-stream``; None for a keep-alive comment.

    See the HTML standard, section 9.2.6. Only ``event`` and ``data`` are read: a reconnecting client gets the full
    state, so ids don't matter.
    """
    name = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                with contextlib.suppress(ValueError):  # not JSON: not an event of the daemon
                    parsed = json.loads("\n".join(data))
                    if isinstance(parsed, dict):
                        yield ServerEvent(name or "message", parsed)
            else:
                yield None
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data.append(value)
