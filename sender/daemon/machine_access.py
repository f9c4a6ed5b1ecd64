"""Access of machines: their secrets, checked without a query for each check-in, and their revocation.

A secret that was valid once stays valid in memory until a poll of the database, every :data:`POLL_S`, shows that it
was rotated or its machine revoked. A machine that an operator revokes at this daemon is out at once, and one that was
revoked at another daemon at the next poll. While the database is unavailable known machines take part, and a revocation
at this daemon counts here; other daemons learn of it when the database is back.
"""

from __future__ import annotations

import asyncio
import enum
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

import structlog

from protocol.errors import DatabaseError
from sender.actors import Actor
from sender.daemon.jobs.cast_registry import CastRegistry
from sender.store.machines.claims import secret_hash
from sender.store.records.machines import Machine
from sender.store.repositories.enrolments import Enrolments
from sender.store.store import Store
from sender.store.write_behind import Recorder

POLL_S: Final = 2.0
"""Interval of polls for machines that other daemons revoked: with a slow query they are out within five seconds."""
_KNOWN_MAX: Final = 4096
"""Machines whose secrets are kept in memory: four rooms of the largest size."""
_REVOKE_S: Final = 2.0
"""Longest wait for the database before a revocation that counts already is left to the recorder."""

_log = structlog.get_logger(__name__)


class Revocation(enum.Enum):
    """The result of a revocation."""

    RECORDED = enum.auto()
    RECORDED_LATER = enum.auto()
    """The machine is out of this daemon; other daemons learn of it when the database is available."""
    UNKNOWN_MACHINE = enum.auto()


class MachineAccess:
    """Secrets and revocations of machines. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store, recorder: Recorder, registry: CastRegistry) -> None:
        """Read from ``store``.

        Args:
            store: the database.
            recorder: writes a revocation while the database is unavailable.
            registry: casts that expel revoked machines.
        """
        self._store = store
        self._recorder = recorder
        self._registry = registry
        self._known: OrderedDict[str, str] = OrderedDict()
        self._revoked: set[str] = set()
        self._unrecorded: set[str] = set()

    def knows(self, secret: str) -> bool:
        """Return whether :meth:`authenticate` needs no query for this secret."""
        return secret_hash(secret) in self._known

    async def authenticate(self, secret: str) -> str | None:
        """Return the id of the machine whose secret this is, or None.

        Raises:
            DatabaseError: the secret isn't known yet and the database is unavailable.
        """
        hashed = secret_hash(secret)
        machine_id = self._known.get(hashed)
        if machine_id is None:
            machine: Machine | None = await self._store.run(self._store.enrolments.machine_of, hashed)
            if machine is None or machine.machine_id in self._revoked:
                return None
            machine_id = self._known[hashed] = machine.machine_id
            while len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        self._known.move_to_end(hashed)
        return machine_id

    def is_revoked(self, machine_id: str) -> bool:
        """Return whether a machine is revoked, as far as this daemon knows."""
        return machine_id in self._revoked

    async def revoke(self, machine_id: str, actor: Actor) -> Revocation:
        """Revoke a machine: here at once, at other daemons when they poll the database.

        While the database is unavailable the machine is out of this daemon, and the recorder writes the revocation.
        """
        self._unrecorded.add(machine_id)
        self.lock_out(machine_id, actor.name)
        note, store = actor.note(), self._store
        try:
            async with asyncio.timeout(_REVOKE_S):
                machine: Machine | None = await store.run(store.enrolments.revoke, machine_id, audit=note)
        except (DatabaseError, TimeoutError):
            self._recorder.put(("revoke", machine_id), Enrolments.revoke, machine_id, audit=note)
            return Revocation.RECORDED_LATER
        self._unrecorded.discard(machine_id)
        if machine is None:
            self._revoked.discard(machine_id)
            return Revocation.UNKNOWN_MACHINE
        return Revocation.RECORDED

    async def readmit(self, machine_id: str, actor: Actor) -> Machine | None:
        """Let a revoked machine enrol again; None if it doesn't exist.

        Raises:
            DatabaseError: the database is unavailable.
        """
        machine: Machine | None = await self._store.run(
            self._store.enrolments.readmit, machine_id, audit=actor.note()
        )
        self._revoked.discard(machine_id)
        return machine

    def forget(self, machine_id: str) -> None:
        """Look the machine's secret up again: it was rotated, or the machine was removed."""
        for hashed in [hashed for hashed, known in self._known.items() if known == machine_id]:
            del self._known[hashed]

    async def run(self) -> None:
        """Poll for changes by other daemons until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.poll()
            except DatabaseError as error:
                _log.debug("revocations_not_polled", error=str(error))

    async def poll(self) -> None:
        """Drop secrets that were rotated and lock out machines that were revoked or removed.

        Raises:
            DatabaseError: the database is unavailable.
        """
        store = self._store
        known = dict(self._known)
        hashes: dict[str, str] = await store.run(store.enrolments.hashes, set(known.values()))
        for hashed, machine_id in known.items():
            if hashes.get(machine_id) != hashed:
                self._known.pop(hashed, None)
        before = set(self._revoked)
        watched = {*known.values(), *self._members(), *before}
        blocked: set[str] = await store.run(store.enrolments.blocked_of, watched)
        for machine_id in blocked - self._revoked:
            self.lock_out(machine_id, "another daemon")
        self._unrecorded -= blocked
        self._revoked -= before - blocked - self._unrecorded  # readmitted by another daemon

    def lock_out(self, machine_id: str, actor_name: str) -> None:
        """Refuse a machine from now on, and let running casts continue without it."""
        self.forget(machine_id)
        if machine_id not in self._revoked:
            self._revoked.add(machine_id)
            _log.warning("machine_revoked", machine_id=machine_id, by=actor_name)
            for job in list(self._registry.jobs.values()):
                job.expel(machine_id, actor_name)
            self._registry.changes.notify()  # ends its long poll

    def _members(self) -> Iterator[str]:
        """Yield the machines of the casts that run here."""
        for job in self._registry.jobs.values():
            yield from job.targets
            yield from (row.machine_id for row in job.records.machines.values() if row.machine_id)
