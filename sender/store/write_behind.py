"""The recorder: running casts write to the database without waiting for it.

A record is data (a method of the store and its arguments), so that it can be kept in a file, the spool: the next start
writes the records that a stopped daemon couldn't. A record replaces an unwritten one with the same key, so the number
of waiting records is bounded by the number of things, not by the length of an outage.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import logging
import operator
import os
import threading
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from protocol.errors import DatabaseError, DiskcastError
from sender.store.backup.crc_lines import pack_line, unpack_line, write_all
from sender.store.backup.journal import sync_directory
from sender.store.records.problems import Problem, ProblemKind
from sender.store.repositories.audit import Audit
from sender.store.repositories.casts import Casts
from sender.store.repositories.credentials import Credentials
from sender.store.repositories.enrolments import Enrolments
from sender.store.repositories.images import Images
from sender.store.repositories.leases import Leases
from sender.store.repositories.machines import Machines
from sender.store.repositories.tokens import Tokens
from sender.store.repositories.wakes import Wakes
from sender.store.store import Store

RECORDABLE: Final[dict[str, Callable[..., object]]] = {
    "audit.add": Audit.add,
    "casts.add_event": Casts.add_event,
    "casts.clear_request": Casts.clear_request,
    "casts.put_machine": Casts.put_machine,
    "casts.put_machines": Casts.put_machines,
    "casts.put_timeline": Casts.put_timeline,
    "casts.save": Casts.save,
    "casts.save_progress": Casts.save_progress,
    "credentials.add_session": Credentials.add_session,
    "credentials.remove_session": Credentials.remove_session,
    "enrolments.revoke": Enrolments.revoke,
    "images.put": Images.put,
    "leases.release": Leases.release,
    "machines.touch": Machines.touch,
    "tokens.remove": Tokens.remove,
    "wakes.put": Wakes.put,
}
"""Methods that may be recorded, by their names in the spool: calling one again, after an answer was lost, does no harm.
(An audit entry needs its key for that.)"""
PENDING_MAX = 20_000
"""Waiting records, at most: 16 casts with 1000 machines each, and their events. The limit bounds memory."""
BATCH_MAX = 200
"""Records of a transaction, some tens of milliseconds."""
GATHER_S = 0.05
"""The first record of a batch waits this long for others: each transaction costs two syncs of the disk."""
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 5.0
SPOOL_NAME = "recorder.spool"
SPOOL_LINE_BYTES_MAX = 8 << 20

_NAMES: Final = {method: name for name, method in RECORDABLE.items()}
_Arguments = ParamSpec("_Arguments")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Write:
    """A call of a method of the store.

    Attributes:
        method: name in :data:`RECORDABLE`.
    """

    method: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    def do(self, store: Store) -> None:
        """Call the method."""
        operator.attrgetter(self.method)(store)(*self.args, **self.options)


class Recorder:
    """A writer of records to the store, in order, that keeps them while the store is unavailable.

    Args:
        store: gets the records.
        state_directory: holds the spool.
    """

    def __init__(self, store: Store, state_directory: Path) -> None:
        self._store = store
        self._spool = state_directory / SPOOL_NAME
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, ...], Write] = {}
        self._writing: dict[tuple[str, ...], Write] = {}
        self._problem: Problem | None = None
        self._full_since: Problem | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._spooled = False
        self.dropped_count = 0
        """Records that were dropped: refused by the database's rules, or too many."""
        self._load()

    @property
    def pending_count(self) -> int:
        """Return the number of records that aren't written yet."""
        with self._lock:
            return len(self._waiting.keys() | self._writing.keys())

    @property
    def problem(self) -> Problem | None:
        """Return the problem that makes records wait, or None."""
        return self._full_since or self._problem

    def put(
        self,
        key: tuple[str, ...],
        method: Callable[Concatenate[Any, _Arguments], object],
        *args: _Arguments.args,
        **options: _Arguments.kwargs,
    ) -> None:
        """Queue a call of ``method``, in place of an unwritten one with the same key. Never waits; thread-safe.

        Args:
            key: identity of the recorded object.
            method: one of :data:`RECORDABLE`, e.g. ``Casts.save``.
            args: its arguments, records or plain values; not changed afterwards.
            options: its keyword arguments.
        """
        name = _NAMES.get(method)
        if name is None:
            raise ValueError(f"{method.__qualname__} can't be recorded: a second call might do harm")
        with self._lock:
            # At the end, even if it replaces one: records put before it are written before it.
            self._waiting.pop(key, None)
            if len(self._waiting) + len(self._writing) >= PENDING_MAX:
                self.dropped_count += 1
                if self._full_since is None:
                    text = (
                        f"{PENDING_MAX} records wait for the database {self._store.place}: further records of casts "
                        "are lost; fix the database"
                    )
                    self._full_since = Problem(ProblemKind.DATABASE, text, self._store.now())
                return
            self._waiting[key] = Write(name, args, options)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Write records until cancelled."""
        self._loop = asyncio.get_running_loop()
        retry_s = RETRY_FIRST_S
        while True:
            if not self.pending_count:
                self._idle.set()
                await self._wake.wait()
            self._wake.clear()
            self._idle.clear()
            await asyncio.sleep(GATHER_S)
            try:
                await self._write_waiting()
            except DatabaseError as error:
                await self._failed(error)
                # New records don't shorten the wait: the database needs time to recover.
                await asyncio.sleep(retry_s)
                retry_s = min(RETRY_MAX_S, retry_s * 2)
            else:
                retry_s = RETRY_FIRST_S
                self._problem = self._full_since = None
                if self._spooled and not self.pending_count:
                    self._forget_spool()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all records are written; return False if that takes longer than ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.pending_count:
                    self._idle.clear()
                    await self._idle.wait()
        return not self.pending_count

    def close(self) -> None:
        """Keep unwritten records in the spool for the next start. Call it after :meth:`run` has ended."""
        if self.pending_count:
            self._save()
            _log.warning("%d records are kept in %s for the next start", self.pending_count, self._spool)

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _write_waiting(self) -> None:
        """Write the records that wait now; those put in the meantime wait for the next call, so that none starves."""
        with self._lock:
            # Records that failed before are older, unless a newer one replaced them.
            self._writing = {
                **{key: write for key, write in self._writing.items() if key not in self._waiting},
                **self._waiting,
            }
            self._waiting = {}
            todo = list(self._writing.items())
        for start in range(0, len(todo), BATCH_MAX):
            batch = todo[start : start + BATCH_MAX]
            try:
                await self._store.run(self._write_together, [write for _, write in batch])
            except DatabaseError:
                raise
            except Exception:  # noqa: BLE001  one of them is at fault: the others must not be lost with it
                for _key, write in batch:
                    await self._write_alone(write)
            with self._lock:
                for key, _ in batch:
                    self._writing.pop(key, None)

    def _write_together(self, batch: list[Write]) -> None:
        with self._store.transaction():
            for write in _joined(batch):
                write.do(self._store)

    async def _write_alone(self, write: Write) -> None:
        try:
            await self._store.run(write.do, self._store)
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001  the records behind it must be written
            self.dropped_count += 1
            _log.exception("a record can't be written and is dropped: %s: %s", write.method, error)

    async def _failed(self, error: DatabaseError) -> None:
        since = self._problem.since if self._problem is not None else self._store.now()
        if self._problem is None:
            _log.error("records wait for the database: %s", error)
        text = f"{self.pending_count} records wait until the database works again: {error}"
        self._problem = Problem(ProblemKind.DATABASE, text, since)
        await asyncio.to_thread(self._save)

    # -- the spool -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Keep the waiting records in a file, so that even a kill loses none."""
        with self._lock:
            todo = {
                **{key: write for key, write in self._writing.items() if key not in self._waiting},
                **self._waiting,
            }
        partial = self._spool.with_name(f"{SPOOL_NAME}.partial")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                for key, write in todo.items():
                    line = {"key": list(key), "method": write.method}
                    line |= to_jsonable_python({"args": write.args, "options": write.options})
                    write_all(descriptor, pack_line(line))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(self._spool)
            sync_directory(self._spool.parent)
            self._spooled = True
        except OSError as error:
            _log.error("waiting records can't be kept in %s: %s", self._spool, error)

    def _load(self) -> None:
        """Take over the records that an earlier run kept."""
        try:
            with self._spool.open("rb") as file:
                self._spooled = True
                while (line := file.readline(SPOOL_LINE_BYTES_MAX)) and len(self._waiting) < PENDING_MAX:
                    try:
                        data: Any = unpack_line(line)
                        self._waiting[tuple(data["key"])] = _write_of(data)
                    except (TypeError, KeyError, ValueError, AttributeError, DiskcastError) as error:
                        self.dropped_count += 1
                        _log.error("a record in %s can't be read and is dropped: %s", self._spool, error)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.error("records of the last run in %s can't be read: %s", self._spool, error)
        if self._waiting:
            _log.info("%d records of the last run are written now", len(self._waiting))

    def _forget_spool(self) -> None:
        with contextlib.suppress(OSError):
            self._spool.unlink(missing_ok=True)
            self._spooled = False


def _joined(batch: list[Write]) -> list[Write]:
    """Return the same calls, with consecutive ones for machines of one cast joined: together they cost little more."""
    joined: list[Write] = []
    for write in batch:
        before = joined[-1] if joined else None
        if write.method != "casts.put_machine":
            joined.append(write)
        elif (
            before is not None
            and before.method == "casts.put_machines"
            and before.options == write.options
            and before.args[0][0].cast_id == write.args[0].cast_id
        ):
            joined[-1] = dataclasses.replace(before, args=([*before.args[0], write.args[0]],))
        else:
            joined.append(Write("casts.put_machines", ([write.args[0]],), write.options))
    return joined


def _write_of(data: dict[str, Any]) -> Write:
    """Return a line of the spool as a call, with arguments of the method's types."""
    parameters = _parameters(data["method"])
    values = _renamed(data["args"]), _renamed(data["options"])
    args = tuple(
        adapter.validate_python(value) for adapter, value in zip(parameters.values(), values[0], strict=False)
    )
    options = {name: parameters[name].validate_python(value) for name, value in values[1].items()}
    return Write(data["method"], args, options)


def _renamed(data: Any) -> Any:
    """Return data of a spool of version 0.1.0, where the field ``bottleneck`` was called ``limiter``."""
    if isinstance(data, list):
        return [_renamed(part) for part in data]
    if isinstance(data, dict):
        return {"bottleneck" if name == "limiter" else name: _renamed(part) for name, part in data.items()}
    return data


@functools.cache
def _parameters(method: str) -> dict[str, TypeAdapter[Any]]:
    """Return the parameters of a recordable method, with their types' adapters.

    Raises:
        KeyError: no recordable method has this name.
    """
    function = RECORDABLE[method]
    hints = typing.get_type_hints(function)
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    return {name: TypeAdapter(hints[name]) for name in names}
