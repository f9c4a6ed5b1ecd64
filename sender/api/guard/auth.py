"""Authentication and authorisation: bearer tokens, and the dashboard's session cookie."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request

from protocol.control.capture_messages import CAPTURE_SECRET_PREFIX
from protocol.errors import DatabaseError
from sender.actors import Actor
from sender.addresses import source_network
from sender.api.guard.known_secrets import KnownSecrets
from sender.api.guard.login_codes import LoginCodes
from sender.daemon.captures.capture_desk import CaptureDesk
from sender.daemon.machine_access import MachineAccess
from sender.http.connections import admit, count_rejection
from sender.http.rejections import Rejection
from sender.store.machines.claims import SECRET_PREFIX, secret_hash
from sender.store.records.access import Credential, Role, Session, Token
from sender.store.repositories.audit import AuditNote
from sender.store.repositories.boots import BOOT_TOKEN_PREFIX
from sender.store.repositories.credentials import Credentials, new_session
from sender.store.repositories.tokens import Tokens
from sender.store.store import Store
from sender.store.write_behind import Recorder

SESSION_COOKIE: Final = "diskcast_session"
SECRET_CHARACTERS_MAX: Final = 128
SESSION_LIFETIME: Final = timedelta(hours=12)
"""A working day."""

_SECRET: Final = re.compile(r"(?:dct_(?:view|operate|enrol|boot)|dcs)_[A-Za-z0-9_-]{43}")
_USE_NOTED_EVERY: Final = timedelta(minutes=1)
_DATABASE_WAIT_S: Final = 2.0
"""Longest wait for the database before a sign-in or a revocation is left to the recorder."""
_USES_NOTED_MAX: Final = 4096
_FAILURES_BURST: Final = 10
_FAILURES_PER_S: Final = 0.5
"""Rate of unknown secrets from one address that are looked up in the database. A secret has 256 bits: this bounds load,
not guessing. A known secret is never refused for the failures of others."""
_ADDRESSES_MAX: Final = 1024
"""Addresses whose failures are remembered; the least recent is forgotten first."""


class Access(enum.Enum):
    """The access that a route requires."""

    OPEN = "open"
    """No token: the route is public, or signs in."""
    VIEW = "view"
    OPERATE = "operate"
    ENROL = "enrol"
    BOOT = "boot"
    """``boot``, or ``operate``: a boot service on the daemon's machine uses the operator's token there."""
    MACHINE = "machine"
    """The secret of a machine, which no token replaces."""
    CAPTURE = "capture"
    """The secret of the capture in the path, which no token replaces."""
    METRICS = "metrics"
    """``VIEW``, or none if ``metrics.public`` is set."""


_ROLES: Final = {
    Access.VIEW: frozenset({Role.VIEW, Role.OPERATE}),
    Access.METRICS: frozenset({Role.VIEW, Role.OPERATE}),
    Access.OPERATE: frozenset({Role.OPERATE}),
    Access.ENROL: frozenset({Role.ENROL}),
    Access.BOOT: frozenset({Role.BOOT, Role.OPERATE}),
    Access.MACHINE: frozenset(),
    Access.CAPTURE: frozenset(),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Principal:
    """The client on whose behalf a request runs.

    Attributes:
        name: the token's name, or the id of a machine that has its secret.
        role: None for a client without a token, which may use open routes only.
        credential: the token and session; None without a token.
        room_id: room of a token for enrolment or boots; None for all rooms.
        machine_id: the machine whose secret the client has; empty for tokens.
        capture_id: the capture whose secret the client has; empty for others.
        boot_hash: hash of the client's boot token; empty for others.
    """

    name: str
    role: Role | None
    credential: Credential | None = None
    room_id: str | None = None
    machine_id: str = ""
    boot_hash: str = dataclasses.field(default="", repr=False)
    capture_id: str = ""

    def may(self, access: Access) -> bool:
        """Return whether this principal may use a route of ``access``."""
        if access is Access.MACHINE:
            return bool(self.machine_id)
        if access is Access.CAPTURE:
            return bool(self.capture_id)
        return access is Access.OPEN or self.role in _ROLES[access]

    def actor(self, request_id: str) -> Actor:
        """Return the actor that the audit records."""
        return Actor(self.name, request_id)


ANONYMOUS: Final = Principal("", None)


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

    Attributes:
        secrets: the valid secrets.
        login_codes: unused one-time codes.
    """

    def __init__(
        self,
        store: Store,
        recorder: Recorder,
        machines: MachineAccess,
        captures: CaptureDesk,
        *,
        metrics_public: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Authenticate by the tokens and sessions in ``store``.

        Args:
            store: the daemon's store.
            recorder: keeps sign-ins and revocations while the database is unavailable.
            machines: knows the secrets of machines.
            captures: knows the secrets of captures.
            metrics_public: require no token for metrics.
            now: monotonic seconds.
        """
        self._store = store
        self._recorder = recorder
        self._machines = machines
        self._captures = captures
        self._metrics_public = metrics_public
        self._failures = _Failures(now)
        self._writing: set[asyncio.Task[None]] = set()
        self._use_noted: dict[str, datetime] = {}
        self.secrets = KnownSecrets(store, now)
        self.login_codes = LoginCodes(now)

    async def authorise(self, connection: HTTPConnection, access: Access) -> Principal:
        """Return the principal of a request if it may use a route of ``access``.

        Raises:
            HTTPException: 401 without a valid secret, 403 for the wrong role, 429 after too many wrong secrets.
            DatabaseError: no secrets are known, since the database is unavailable.
        """
        if access is Access.OPEN or (access is Access.METRICS and self._metrics_public):
            return ANONYMOUS
        principal = await self._principal(connection, access)
        if not principal.may(access):
            count_rejection(connection, Rejection.FORBIDDEN)
            needed = " or ".join(sorted(role.value for role in _ROLES[access]))
            needed = f"a token of role {needed}" if needed else f"the own secret of the {access.value}"
            raise HTTPException(
                HTTPStatus.FORBIDDEN,
                f"the token {principal.name!r} has the role {principal.role}; use {needed}",
            )
        admit(connection)
        return principal

    async def check(self, secret: str, connection: HTTPConnection) -> Credential | None:
        """Return the credential of a secret, or None.

        Raises:
            HTTPException: 429 for an unknown secret after too many wrong ones from this address.
            DatabaseError: the secret isn't known and the database is unavailable.
        """
        credential = None
        if _SECRET.fullmatch(secret):
            credential = await self.secrets.get(secret)
            if credential is None:
                network = self._limit_failures(connection)
                credential = await self.secrets.look_up(secret)
                if credential is None:
                    self._failures.count(network)
        if credential is None:
            count_rejection(connection, Rejection.UNAUTHORISED)
            return None
        self._note_use(credential.token)
        return credential

    def redeem(self, code: str, connection: HTTPConnection) -> Credential | None:
        """Return the credential of a one-time code, or None."""
        credential = self.secrets.valid(self.login_codes.redeem(code))
        if credential is None:
            count_rejection(connection, Rejection.UNAUTHORISED)
        return credential

    async def sign_in(self, token: Token, request_id: str) -> tuple[Session, str]:
        """Start a session of ``token``; return it and its secret."""
        session, secret = new_session(token, datetime.now(UTC), SESSION_LIFETIME)
        note = AuditNote(token.name, request_id=request_id)
        try:
            async with asyncio.timeout(_DATABASE_WAIT_S):
                await self._store.run(self._store.credentials.add_session, session, audit=note)
        except (DatabaseError, TimeoutError):
            self._recorder.put(("session", session.session_id), Credentials.add_session, session, audit=note)
        self.secrets.add_session(session, token)
        return session, secret

    async def sign_out(self, cookie: str, request_id: str) -> None:
        """End the session of a cookie, if there is one."""
        credential = await self.secrets.get(cookie)
        if credential is None or credential.session is None:
            return
        session_id = credential.session.session_id
        self.secrets.revoke(session_id)
        note = AuditNote(credential.token.name, request_id=request_id)
        try:
            async with asyncio.timeout(_DATABASE_WAIT_S):
                await self._store.run(self._store.credentials.remove_session, session_id, audit=note)
        except (DatabaseError, TimeoutError):
            self._recorder.put(("session", session_id), Credentials.remove_session, session_id, audit=note)

    async def revoke_token(self, token_id: str, note: AuditNote) -> bool:
        """Revoke a token and its sessions; return False if it doesn't exist.

        They are refused here from now on. If the database is unavailable, the revocation is recorded there, for other
        daemons too, as soon as it works again; a restart of this daemon in the meantime loses nothing.
        """
        self.secrets.revoke(token_id)
        try:
            async with asyncio.timeout(_DATABASE_WAIT_S):
                return await self._store.run(self._store.tokens.remove, token_id, audit=note)
        except (DatabaseError, TimeoutError):
            self._recorder.put(("token", token_id), Tokens.remove, token_id, audit=note)
            return True

    def _note_use(self, token: Token) -> None:
        """Record the time of use in the background, at most once a minute."""
        now = datetime.now(UTC)
        noted_at = self._use_noted.get(token.token_id) or token.last_used_at
        if noted_at is not None and now - noted_at <= _USE_NOTED_EVERY:
            return
        if len(self._use_noted) > _USES_NOTED_MAX:
            self._use_noted.clear()
        self._use_noted[token.token_id] = now
        task = asyncio.ensure_future(self._write_use(token.token_id))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write_use(self, token_id: str) -> None:
        with contextlib.suppress(DatabaseError):
            await self._store.run(self._store.tokens.used, token_id)

    def _limit_failures(self, connection: HTTPConnection) -> str:
        """Return the network of a client that may present an unknown secret."""
        network = source_network(connection.client.host if connection.client else "")
        wait_s = self._failures.wait_s(network)
        if wait_s > 0:
            count_rejection(connection, Rejection.TOO_MANY_FAILURES)
            raise HTTPException(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too many wrong tokens from this address: check the token, then retry later",
                {"Retry-After": str(int(wait_s) + 1)},
            )
        return network

    async def _principal(self, connection: HTTPConnection, access: Access) -> Principal:
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        if access is Access.CAPTURE and secret.strip().startswith(CAPTURE_SECRET_PREFIX):
            return self._capture(secret.strip(), connection)
        if access in (Access.ENROL, Access.MACHINE) and secret.strip().startswith(SECRET_PREFIX):
            return await self._machine(secret.strip(), connection)
        if access is Access.ENROL and secret.strip().startswith(BOOT_TOKEN_PREFIX):
            return await self._boot(secret.strip(), connection)
        if scheme:
            # A session's secret is for cookies only, which browsers keep from scripts and other sites.
            usable = scheme.lower() == "bearer" and not secret.startswith("dcs_")
            credential = await self.check(secret.strip() if usable else "", connection)
            if credential is None:
                raise _unauthorised("the token is unknown or has expired: ask an operator for a new one")
            return _principal_of(credential)
        cookie = connection.cookies.get(SESSION_COOKIE)
        if cookie is None:
            count_rejection(connection, Rejection.UNAUTHORISED)
            raise _unauthorised("a token is required: send Authorization: Bearer TOKEN")
        credential = await self.check(cookie if cookie.startswith("dcs_") else "", connection)
        if credential is None:
            raise _unauthorised("the session has expired: log in again")
        return _principal_of(credential)

    async def _machine(self, secret: str, connection: HTTPConnection) -> Principal:
        """Return the machine whose secret this is."""
        machine_id = None
        if len(secret) <= SECRET_CHARACTERS_MAX and secret.isascii():
            network = "" if self._machines.knows(secret) else self._limit_failures(connection)
            machine_id = await self._machines.authenticate(secret)
            if machine_id is None and network:
                self._failures.count(network)
        if machine_id is None:
            count_rejection(connection, Rejection.UNAUTHORISED)
            raise _unauthorised("the machine's secret is unknown or revoked: enrol again with a token")
        return Principal(machine_id, Role.ENROL, machine_id=machine_id)

    def _capture(self, secret: str, connection: HTTPConnection) -> Principal:
        """Return the principal of the capture in the path, if this is its secret."""
        capture_id = str(connection.path_params.get("capture_id", ""))
        usable = len(secret) <= SECRET_CHARACTERS_MAX and secret.isascii()
        if not usable or not self._captures.authenticate(capture_id, secret):
            count_rejection(connection, Rejection.FORBIDDEN)
            raise HTTPException(
                HTTPStatus.FORBIDDEN, "this isn't the secret of this capture: check in to get a new one"
            )
        return Principal(f"capture {capture_id}", None, capture_id=capture_id)

    async def _boot(self, secret: str, connection: HTTPConnection) -> Principal:
        """Return the principal of a boot token; the claim decides whether this agent may use it."""
        token = None
        if len(secret) <= SECRET_CHARACTERS_MAX and secret.isascii():
            network = self._limit_failures(connection)
            hashed = secret_hash(secret)
            token = await self._store.run(self._store.boots.find, hashed)
            if token is None:
                self._failures.count(network)
        if token is None:
            count_rejection(connection, Rejection.UNAUTHORISED)
            raise _unauthorised(
                "the boot token is unknown or has expired: boot the machine over the network again"
            )
        return Principal(
            f"boot by {token.issued_by}", Role.ENROL, room_id=token.room_id, boot_hash=token.token_hash
        )


def authenticator_of(request: Request) -> Authenticator:
    """Return the authenticator of the application that serves ``request``."""
    authenticator = request.app.state.authenticator
    assert isinstance(authenticator, Authenticator)
    return authenticator


def _principal_of(credential: Credential) -> Principal:
    return Principal(credential.token.name, credential.token.role, credential, credential.token.room_id)


def _unauthorised(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.UNAUTHORIZED, detail, {"WWW-Authenticate": "Bearer"})
