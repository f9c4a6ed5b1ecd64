"""Who asks, and whether it may: bearer tokens, the dashboard's session cookie, and the open loopback."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request

from protocol.errors import DatabaseError
from sender.actors import Actor
from sender.daemon.context import Services
from sender.store.records.access import Role, Token

SESSION_COOKIE: Final = "diskcast_session"
SECRET_CHARACTERS_MAX: Final = 128
LOCAL_NAME: Final = "local"
"""Who asks on the loopback when no tokens are demanded."""

_KNOWN_FRESH_S: Final = 5.0
"""A token that another daemon of the same database deleted is good here for this long."""
_KNOWN_STALE_S: Final = 900.0
"""While the database doesn't answer, tokens that were right so recently still are: operators can watch the mending."""
_USED_AGAIN: Final = timedelta(minutes=1)
_KNOWN_COUNT_MAX: Final = 2048
"""Tokens remembered: every machine could have one of its own."""
_FAILURES_BURST: Final = 10
_FAILURES_PER_S: Final = 0.5
"""Wrong tokens from one address; a token has 256 bits, so this bounds load and log rather than guessing."""
_ADDRESSES_MAX: Final = 1024
"""Addresses whose failures are remembered; the one longest quiet is forgotten first."""


class Access(enum.Enum):
    """What a route demands."""

    OPEN = "open"
    """Nothing: it says nothing that isn't public, or it is how one gets in."""
    VIEW = "view"
    OPERATE = "operate"
    ENROL = "enrol"
    METRICS = "metrics"
    """As ``VIEW``, unless ``metrics.public`` is set."""


_ROLES: Final = {
    Access.VIEW: frozenset({Role.VIEW, Role.OPERATE}),
    Access.METRICS: frozenset({Role.VIEW, Role.OPERATE}),
    Access.OPERATE: frozenset({Role.OPERATE}),
    Access.ENROL: frozenset({Role.ENROL}),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        name: of the token, or ``local``.
        role: None if it may everything, as on the open loopback.
    """

    name: str
    role: Role | None

    def may(self, access: Access) -> bool:
        """Whether it may use a route of ``access``."""
        return access is Access.OPEN or self.role is None or self.role in _ROLES[access]

    def actor(self, request_id: str) -> Actor:
        """As audit writes it."""
        return Actor(self.name, request_id)


NOBODY: Final = Principal("", None)
_LOCAL: Final = Principal(LOCAL_NAME, None)


class _Failures:
    """Wrong tokens of each address: a bucket that empties by one each and fills with time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until this address may present an unknown token again; 0 if it may now."""
        left = self._left(address)
        return 0.0 if left >= 1 else (1 - left) / _FAILURES_PER_S

    def count(self, address: str) -> None:
        """A token of this address was wrong."""
        self._buckets[address] = (max(0.0, self._left(address) - 1), self._now())
        self._buckets.move_to_end(address)
        while len(self._buckets) > _ADDRESSES_MAX:
            self._buckets.popitem(last=False)

    def _left(self, address: str) -> float:
        left, at = self._buckets.get(address, (float(_FAILURES_BURST), 0.0))
        return min(float(_FAILURES_BURST), left + (self._now() - at) * _FAILURES_PER_S)


class Authenticator:
    """Finds out who asks.

    Secrets are compared by their SHA-256 (here as keys of a table, in the store as a unique column): how long a look-up
    takes says nothing about a secret of 256 random bits.
    """

    def __init__(
        self, services: Services, *, open_to_all: bool, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Ask the tokens of ``services``.

        Args:
            services: the daemon's.
            open_to_all: no token is demanded.
            now: monotonic seconds.
        """
        self._services = services
        self.open_to_all = open_to_all
        self._now = now
        self._failures = _Failures(now)
        self._writing: set[asyncio.Task[None]] = set()
        self._known: OrderedDict[bytes, tuple[Token, float]] = OrderedDict()

    async def authorise(self, connection: HTTPConnection, access: Access) -> Principal:
        """Who asks, if it may use a route of ``access``.

        Raises:
            HTTPException: 401 without a right token, 403 with one of the wrong role, 429 after too many wrong ones.
            DatabaseError: the token isn't known here, and the database doesn't answer.
        """
        if access is Access.OPEN or (access is Access.METRICS and self._services.config.metrics.public):
            return NOBODY
        principal = await self._principal(connection)
        if not principal.may(access):
            needed = " or ".join(sorted(role.value for role in _ROLES[access]))
            raise HTTPException(
                HTTPStatus.FORBIDDEN,
                f"the token {principal.name!r} has the role {principal.role}; this needs {needed}",
            )
        return principal

    async def check(self, secret: str, address: str) -> Token | None:
        """The token of a secret, None if there is none.

        Raises:
            HTTPException: 429 after too many wrong ones from this address.
            DatabaseError: it isn't known here, and the database doesn't answer.
        """
        if not 0 < len(secret) <= SECRET_CHARACTERS_MAX or not secret.isascii():
            self._fail(_network(address))
            return None
        key = hashlib.sha256(secret.encode()).digest()
        known = self._known.get(key)
        if known is not None and self._now() - known[1] < _KNOWN_FRESH_S:
            return known[0] if _in_time(known[0]) else None
        if known is not None and self._services.store.problem is not None and self._is_recent(known[1]):
            return known[0] if _in_time(known[0]) else None  # asking would take its whole time-out
        network = _network(address)
        if known is None:
            self._demand_patience(network)
        try:
            token: Token | None = await self._services.store.run(self._services.store.tokens.find, secret)
        except DatabaseError:
            if known is None or not self._is_recent(known[1]):
                raise
            return known[0] if _in_time(known[0]) else None
        if token is None:
            self._known.pop(key, None)
            self._fail(network)
            return None
        self._known[key] = (token, self._now())
        self._known.move_to_end(key)
        while len(self._known) > _KNOWN_COUNT_MAX:
            self._known.popitem(last=False)
        self._note_use(token)
        return token

    def forget(self, token_id: str) -> None:
        """A token was deleted."""
        for key in [key for key, (token, _) in self._known.items() if token.token_id == token_id]:
            del self._known[key]

    def _note_use(self, token: Token) -> None:
        """Have it noted beside the request, which doesn't wait for that, once a minute at most."""
        if token.last_used_at is None or datetime.now(UTC) - token.last_used_at > _USED_AGAIN:
            task = asyncio.ensure_future(self._write_use(token.token_id))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _write_use(self, token_id: str) -> None:
        with contextlib.suppress(DatabaseError):
            await self._services.store.run(self._services.store.tokens.used, token_id)

    def _is_recent(self, at: float) -> bool:
        return self._now() - at < _KNOWN_STALE_S

    def _fail(self, network: str) -> None:
        """A wrong token: counted, or refused for having been the last of too many."""
        self._demand_patience(network)
        self._failures.count(network)

    def _demand_patience(self, network: str) -> None:
        wait_s = self._failures.wait_s(network)
        if wait_s > 0:
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many wrong tokens came from your address: check the token and try again in a while",
                {"Retry-After": str(int(wait_s) + 1)},
            )

    async def _principal(self, connection: HTTPConnection) -> Principal:
        address = connection.client.host if connection.client else ""
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        if scheme:
            token = await self.check(secret.strip(), address) if scheme.lower() == "bearer" else None
            if token is None:
                raise _unauthorised("the token isn't known, or has expired: ask an operator for a new one")
            # On an open daemon a token gives its name, for audit; what it may is everybody's.
            return Principal(token.name, None if self.open_to_all else token.role)
        if self.open_to_all:
            return _LOCAL
        cookie = connection.cookies.get(SESSION_COOKIE)
        if cookie is None:
            raise _unauthorised("a token is needed: Authorization: Bearer TOKEN")
        token = await self.check(cookie, address)
        if token is None:
            raise _unauthorised("the session has ended: sign in again")
        return Principal(token.name, token.role)


def authenticator_of(request: Request) -> Authenticator:
    """Return the authenticator of the application that serves ``request``."""
    authenticator = request.app.state.authenticator
    assert isinstance(authenticator, Authenticator)
    return authenticator


def _unauthorised(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})


def _in_time(token: Token) -> bool:
    return token.expires_at is None or datetime.now(UTC) < token.expires_at


def _network(address: str) -> str:
    """Whose failures are counted together: an IPv6 host has 2^64 addresses of its own."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address
