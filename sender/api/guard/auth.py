"""Authentication and authorisation: bearer tokens, the dashboard's session cookie, and the open loopback."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import hashlib
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
from sender.addresses import source_network
from sender.daemon.machine_access import MachineAccess
from sender.http.connections import admit
from sender.store.machines.claims import SECRET_PREFIX
from sender.store.records.access import Role, Token
from sender.store.store import Store

SESSION_COOKIE: Final = "diskcast_session"
SECRET_CHARACTERS_MAX: Final = 128
LOCAL_NAME: Final = "local"
"""The principal of requests on the loopback when no tokens are required."""

_KNOWN_FRESH_S: Final = 5.0
"""Lifetime of a cached token; a token that another daemon has deleted works here for this long."""
_KNOWN_STALE_S: Final = 900.0
"""Lifetime of a cached token while the database is unavailable, so that operators can watch the repair."""
_USE_NOTED_EVERY: Final = timedelta(minutes=1)
_KNOWN_COUNT_MAX: Final = 2048
"""Cached tokens: every machine may have its own."""
_FAILURES_BURST: Final = 10
_FAILURES_PER_S: Final = 0.5
"""Rate of wrong tokens from one address. A token has 256 bits: this bounds load and log, not guessing."""
_ADDRESSES_MAX: Final = 1024
"""Addresses whose failures are remembered; the least recent is forgotten first."""


class Access(enum.Enum):
    """The access that a route requires."""

    OPEN = "open"
    """No token: the route is public, or signs in."""
    VIEW = "view"
    OPERATE = "operate"
    ENROL = "enrol"
    METRICS = "metrics"
    """``VIEW``, or none if ``metrics.public`` is set."""


_ROLES: Final = {
    Access.VIEW: frozenset({Role.VIEW, Role.OPERATE}),
    Access.METRICS: frozenset({Role.VIEW, Role.OPERATE}),
    Access.OPERATE: frozenset({Role.OPERATE}),
    Access.ENROL: frozenset({Role.ENROL}),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Principal:
    """The client on whose behalf a request runs.

    Attributes:
        name: the token's name, ``local``, or the id of a machine that has its secret.
        role: None for full access, as on the open loopback.
        room_id: room of a token for enrolment; None for all rooms.
        machine_id: the machine whose secret the client has; empty for tokens.
    """

    name: str
    role: Role | None
    room_id: str | None = None
    machine_id: str = ""

    def may(self, access: Access) -> bool:
        """Return whether this principal may use a route of ``access``."""
        return access is Access.OPEN or self.role is None or self.role in _ROLES[access]

    def actor(self, request_id: str) -> Actor:
        """Return the actor that the audit records."""
        return Actor(self.name, request_id)


ANONYMOUS: Final = Principal("", None)
_LOCAL: Final = Principal(LOCAL_NAME, None)


class _Failures:
    """A token bucket of permitted failures per address."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Return the seconds until this address may present an unknown token again; 0 for now."""
        left = self._tokens_left(address)
        return 0.0 if left >= 1 else (1 - left) / _FAILURES_PER_S

    def count(self, address: str) -> None:
        """Count a wrong token of this address."""
        self._buckets[address] = (max(0.0, self._tokens_left(address) - 1), self._now())
        self._buckets.move_to_end(address)
        while len(self._buckets) > _ADDRESSES_MAX:
            self._buckets.popitem(last=False)

    def _tokens_left(self, address: str) -> float:
        left, at = self._buckets.get(address, (float(_FAILURES_BURST), 0.0))
        return min(float(_FAILURES_BURST), left + (self._now() - at) * _FAILURES_PER_S)


class Authenticator:
    """The authenticator of requests, by token or session cookie.

    Secrets are compared by their SHA-256 (here as keys of a table, in the store as a unique column), so the time of a
    lookup reveals nothing about a secret of 256 random bits.
    """

    def __init__(
        self,
        store: Store,
        machines: MachineAccess,
        *,
        open_to_all: bool,
        metrics_public: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Authenticate by the tokens in ``store``.

        Args:
            store: the daemon's store.
            machines: knows the secrets of machines.
            open_to_all: require no token.
            metrics_public: require no token for metrics.
            now: monotonic seconds.
        """
        self._store = store
        self._machines = machines
        self._metrics_public = metrics_public
        self.open_to_all = open_to_all
        self._now = now
        self._failures = _Failures(now)
        self._writing: set[asyncio.Task[None]] = set()
        self._known: OrderedDict[bytes, tuple[Token, float]] = OrderedDict()

    async def authorise(self, connection: HTTPConnection, access: Access) -> Principal:
        """Return the principal of a request if it may use a route of ``access``.

        Raises:
            HTTPException: 401 without a valid token, 403 for the wrong role, 429 after too many wrong tokens.
            DatabaseError: the token isn't cached and the database is unavailable.
        """
        if access is Access.OPEN or (access is Access.METRICS and self._metrics_public):
            return ANONYMOUS
        principal = await self._principal(connection, access)
        admit(connection)
        if not principal.may(access):
            needed = " or ".join(sorted(role.value for role in _ROLES[access]))
            raise HTTPException(
                HTTPStatus.FORBIDDEN,
                f"the token {principal.name!r} has the role {principal.role}; use a token of role {needed}",
            )
        return principal

    async def check(self, secret: str, address: str) -> Token | None:
        """Return the token of a secret, or None.

        Raises:
            HTTPException: 429 after too many wrong tokens from this address.
            DatabaseError: the token isn't cached and the database is unavailable.
        """
        if not 0 < len(secret) <= SECRET_CHARACTERS_MAX or not secret.isascii():
            self._fail(source_network(address))
            return None
        key = hashlib.sha256(secret.encode()).digest()
        known = self._known.get(key)
        if known is not None and self._now() - known[1] < _KNOWN_FRESH_S:
            return known[0] if _is_valid(known[0]) else None
        if known is not None and self._store.problem is not None and self._is_recent(known[1]):
            return known[0] if _is_valid(known[0]) else None  # a query would take its whole timeout
        network = source_network(address)
        if known is None:
            self._limit_failures(network)
        try:
            token: Token | None = await self._store.run(self._store.tokens.find, secret)
        except DatabaseError:
            if known is None or not self._is_recent(known[1]):
                raise
            return known[0] if _is_valid(known[0]) else None
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
        """Drop a deleted token from the cache."""
        for key in [key for key, (token, _) in self._known.items() if token.token_id == token_id]:
            del self._known[key]

    def _note_use(self, token: Token) -> None:
        """Record the time of use in the background, at most once a minute."""
        if token.last_used_at is None or datetime.now(UTC) - token.last_used_at > _USE_NOTED_EVERY:
            task = asyncio.ensure_future(self._write_use(token.token_id))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _write_use(self, token_id: str) -> None:
        with contextlib.suppress(DatabaseError):
            await self._store.run(self._store.tokens.used, token_id)

    def _is_recent(self, at: float) -> bool:
        return self._now() - at < _KNOWN_STALE_S

    def _fail(self, network: str) -> None:
        """Count a wrong token, or refuse it after too many."""
        self._limit_failures(network)
        self._failures.count(network)

    def _limit_failures(self, network: str) -> None:
        wait_s = self._failures.wait_s(network)
        if wait_s > 0:
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many wrong tokens from this address: check the token, then retry later",
                {"Retry-After": str(int(wait_s) + 1)},
            )

    async def _principal(self, connection: HTTPConnection, access: Access) -> Principal:
        address = connection.client.host if connection.client else ""
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        if access is Access.ENROL and secret.strip().startswith(SECRET_PREFIX):
            return await self._machine(secret.strip(), address)
        if scheme:
            token = await self.check(secret.strip(), address) if scheme.lower() == "bearer" else None
            if token is None:
                raise _unauthorised("the token is unknown or has expired: ask an operator for a new one")
            # On an open daemon a token only names the actor for the audit; access is the same for all.
            return Principal(token.name, None if self.open_to_all else token.role, token.room_id)
        if self.open_to_all:
            return _LOCAL
        cookie = connection.cookies.get(SESSION_COOKIE)
        if cookie is None:
            raise _unauthorised("a token is required: send Authorization: Bearer TOKEN")
        token = await self.check(cookie, address)
        if token is None:
            raise _unauthorised("the session has expired: log in again")
        return Principal(token.name, token.role)

    async def _machine(self, secret: str, address: str) -> Principal:
        """Return the machine whose secret this is."""
        network = source_network(address)
        machine_id = None
        if len(secret) <= SECRET_CHARACTERS_MAX and secret.isascii():
            if not self._machines.knows(secret):
                self._limit_failures(network)
            machine_id = await self._machines.authenticate(secret)
        if machine_id is None:
            self._fail(network)
            raise _unauthorised("the machine's secret is unknown or revoked: enrol again with a token")
        return Principal(machine_id, Role.ENROL, machine_id=machine_id)


def authenticator_of(request: Request) -> Authenticator:
    """Return the authenticator of the application that serves ``request``."""
    authenticator = request.app.state.authenticator
    assert isinstance(authenticator, Authenticator)
    return authenticator


def _unauthorised(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})


def _is_valid(token: Token) -> bool:
    return token.expires_at is None or datetime.now(UTC) < token.expires_at
