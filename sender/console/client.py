"""A client of the daemon's API: one request after the other, errors translated, what breaks off asked again safely."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
import pydantic

from protocol.errors import ConfigurationError, DiskcastError, ServerRefusedError, ServerUnreachableError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

T = TypeVar("T")
Query = Mapping[str, str | int | bool | None]

API_PREFIX: Final = "/api/v1"
PAGE_COUNT_MAX: Final = 500
"""Items of one answer: the API's own limit."""
EVENTS_SILENCE_S: Final = 40.0
"""A stream of events that is silent for this long is dead: the daemon says something every 15 s."""

_CONNECT_TIMEOUT_S: Final = 5.0
_ANSWER_TIMEOUT_S: Final = 30.0
"""The daemon itself gives up waiting for its database after 10 s."""
_RETRY_DELAYS_S: Final = (0.25, 0.5, 1.0, 2.0)
"""A daemon that is restarted answers again within seconds."""
_ANSWER_BYTES_MAX: Final = 64 << 20
"""A page of 500 machines with their inventories takes some MB."""
_FIELD_ERRORS_MAX: Final = 20
_ERRNO: Final = re.compile(r"^\[Errno -?\d+\] ")
"""The system's number for what stands in words behind it."""


class Client:
    """The API of one daemon.

    Every method raises :class:`ServerUnreachableError` if the daemon doesn't answer, or not as one, and
    :class:`ServerRefusedError` if it refuses. Reading, replacing and removing are asked again when a connection breaks
    off; creating is too, since it carries a key by which the daemon knows a repeated request.

    Args:
        server: URL of the daemon, without a path.
        token: its secret; None where the daemon asks for none.
    """

    def __init__(self, server: str, token: str | None) -> None:
        self.server = _checked_url(server)
        self._has_token = token is not None
        self._http = httpx.Client(
            base_url=self.server + API_PREFIX,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(_ANSWER_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            # Proxies and .netrc of the environment are for the web: a token must go to the daemon and nowhere else.
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
        """One record."""
        return self._decode(kind, self._request("GET", path, query=query))

    def listed(self, path: str, kind: type[T], query: Query | None = None) -> Iterator[T]:
        """The items of a list, asked for page by page as they are taken."""
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
        """Create what ``body`` says, once, even if it takes several requests."""
        answer = self._request("POST", path, body=body, csv=csv, key=uuid.uuid4().hex)
        return self._decode(kind, answer)

    def order(self, path: str, kind: type[T], body: Mapping[str, object] | None = None) -> T:
        """An order that does no more when it is given twice, such as to pause."""
        return self._decode(kind, self._request("POST", path, body=body))

    def change(self, path: str, kind: type[T], body: Mapping[str, object]) -> T:
        """Change the fields that ``body`` names."""
        return self._decode(kind, self._request("PATCH", path, body=body))

    def remove(self, path: str) -> None:
        """Remove a record. That it is gone already after a broken connection is what was wanted."""
        self._request("DELETE", path, gone_is_fine=True)

    @contextlib.contextmanager
    def stream(
        self, path: str, query: Query | None = None, *, silence_s: float = _ANSWER_TIMEOUT_S
    ) -> Iterator[Any]:
        """An answer that is read bit by bit: an ``httpx.Response`` that has begun."""
        timeout = httpx.Timeout(silence_s, connect=_CONNECT_TIMEOUT_S)
        try:
            with self._http.stream("GET", path, params=_parameters(query), timeout=timeout) as response:
                if response.status_code != httpx.codes.OK:
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
        key: str | None = None,
        gone_is_fine: bool = False,
    ) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        if csv is not None:
            headers["Content-Type"] = "text/csv; charset=utf-8"
        broke_off = False
        for delay_s in (*_RETRY_DELAYS_S, None):
            try:
                with self._http.stream(
                    method, path, params=_parameters(query), json=body, content=csv, headers=headers
                ) as response:
                    content = _read_bounded(response)
            except httpx.TransportError as error:
                # Nobody listens, and nothing was sent: better to say so than to wait.
                nobody = isinstance(
                    error, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol
                )
                if delay_s is None or (nobody and not broke_off):
                    raise self._unreachable(error) from error
                broke_off = True
                time.sleep(delay_s)
                continue
            if broke_off and gone_is_fine and response.status_code == httpx.codes.NOT_FOUND:
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
            raise self._misunderstood("what isn't JSON") from error

    def _decode(self, kind: type[T], value: object) -> T:
        try:
            decoded: T = _adapter(kind).validate_python(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the answer"
            raise self._misunderstood(f"{where}: {first['msg']}") from error
        return decoded

    def _misunderstood(self, what: str) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"{self.server} answers, but not as this diskcast understands ({what}): check that --server is a "
            "diskcast daemon, and that it is of the same version as this command"
        )

    def _unreachable(self, error: httpx.TransportError) -> ServerUnreachableError:
        timed_out = isinstance(error, httpx.TimeoutException)
        why = "it doesn't answer in time" if timed_out else _ERRNO.sub("", str(error)).strip()
        return ServerUnreachableError(
            f"no answer from the daemon at {self.server} ({why or type(error).__name__}): check that `diskcast serve` "
            "runs there, or name another daemon by --server or DISKCAST_SERVER"
        )

    def _refusal(self, response: httpx.Response, content: bytes) -> DiskcastError:
        try:
            problem = json.loads(content)
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            return self._misunderstood(f"HTTP {response.status_code} without a reason")
        text = str(problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}")
        errors = problem.get("errors")
        if isinstance(errors, list):
            text = "; ".join([text, *(error for error in _field_errors(errors) if error not in text)])
        if response.status_code == httpx.codes.UNAUTHORIZED and not self._has_token:
            text += " (give a token by --token-file, DISKCAST_TOKEN_FILE or DISKCAST_TOKEN)"
        refused = ServerRefusedError(text)
        refused.details = {
            "status": response.status_code,
            "request_id": str(problem.get("instance") or response.headers.get("X-Request-Id", "")),
        }
        return refused


def to_json(record: object) -> Any:
    """A record as the API shows it."""
    return _adapter(type(record)).dump_python(record, mode="json")


_adapters: Final[dict[Any, pydantic.TypeAdapter[Any]]] = {}


def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """Made once a kind: making one takes milliseconds."""
    if kind not in _adapters:
        _adapters[kind] = pydantic.TypeAdapter(kind)
    return _adapters[kind]


def _checked_url(server: str) -> str:
    try:
        url = httpx.URL(server)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"--server {server!r} isn't a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or url.path not in ("", "/") or url.userinfo:
        raise ConfigurationError(
            f"--server {server!r} isn't a daemon's URL: write for example http://127.0.0.1:7400"
        )
    return str(url).rstrip("/")


def _parameters(query: Query | None) -> dict[str, str | int | bool]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _read_bounded(response: httpx.Response) -> bytes:
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > _ANSWER_BYTES_MAX:
            raise ServerUnreachableError(
                f"{response.url.host} answered with more than {_ANSWER_BYTES_MAX >> 20} MiB: that is no diskcast daemon"
            )
    return bytes(content)


def _field_errors(errors: Iterable[object]) -> list[str]:
    rows = [error for error in errors if isinstance(error, dict)]
    words = [f"{row.get('field', '')}: {row.get('message', '')}" for row in rows[:_FIELD_ERRORS_MAX]]
    return words + ([f"and {len(rows) - _FIELD_ERRORS_MAX} more"] if len(rows) > _FIELD_ERRORS_MAX else [])


@dataclasses.dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream."""

    name: str
    data: dict[str, Any]


def server_events(lines: Iterable[str]) -> Iterator[ServerEvent | None]:
    """The events of a ``text/event-stream``; None for a sign of life without an event.

    See the HTML standard, section 9.2.6. Only ``event`` and ``data`` matter here: who comes back gets the full state.
    """
    name = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                with contextlib.suppress(ValueError):  # not ours
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
