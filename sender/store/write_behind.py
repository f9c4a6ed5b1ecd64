"""The recorder: what a running cast writes down never waits for the database.

What is to be written is given as data (a method of the store and its arguments), so that it can be kept in a file: what
an ended daemon couldn't write, the next one does. A record that is put under the key of an unwritten one takes its
place, so what waits is bounded by what there is to tell of, not by how long the database is away.
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
from typing import Any

from protocol.errors import DatabaseError, DiskcastError
from sender.store.backup.crc_lines import pack_line, unpack_line, write_all
from sender.store.backup.journal import sync_directory
from sender.store.codec import from_data, to_data
from sender.store.records.problems import Problem
from sender.store.repositories.audit import Audit
from sender.store.repositories.casts import Casts
from sender.store.repositories.images import Images
from sender.store.repositories.leases import Leases
from sender.store.repositories.machines import Machines
from sender.store.store import Store

RECORDABLE = (
    "audit.add",
    "casts.add_event",
    "casts.clear_request",
    "casts.put_machine",
    "casts.put_machines",
    "casts.put_timeline",
    "casts.save",
    "casts.save_progress",
    "images.put",
    "leases.release",
    "machines.touch",
)
"""Methods that may be recorded: those that do no harm when they are called again, after an answer was lost. (An audit
entry needs its key for that.)"""
PENDING_MAX = 20_000
"""Records that may wait: 16 casts with 1000 machines each, and their events. More would be memory without end."""
BATCH_MAX = 200
"""Records of a transaction, some tens of milliseconds."""
GATHER_S = 0.05
"""How long the first record of a batch waits for others: each transaction costs two syncs of the disk."""
RETRY_FIRST_S = 0.25
RETRY_MAX_S = 5.0
SPOOL_NAME = "recorder.spool"
SPOOL_LINE_BYTES_MAX = 8 << 20

_REPOSITORIES: dict[str, type] = {
    "audit": Audit,
    "casts": Casts,
    "images": Images,
    "leases": Leases,
    "machines": Machines,
}
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Write:
    """A call of one of the store's methods."""

    method: str
    args: tuple[Any, ...]
    options: dict[str, Any]

    def do(self, store: Store) -> None:
        """Call it."""
        operator.attrgetter(self.method)(store)(*self.args, **self.options)


class Recorder:
    """Writes records to the store, in order, and keeps them as long as that isn't possible.

    Args:
        store: where to.
        state_directory: for the spool.
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
        """Records that were given up: refused by the database's rules, or too many."""
        self._load()

    @property
    def pending_count(self) -> int:
        """Records that aren't written yet."""
        with self._lock:
            return len(self._waiting.keys() | self._writing.keys())

    @property
    def problem(self) -> Problem | None:
        """Why records wait; None if they don't."""
        return self._full_since or self._problem

    def put(self, key: tuple[str, ...], method: str, *args: Any, **options: Any) -> None:
        """Have ``method`` called soon, in place of an unwritten call with the same key. Never waits; from any thread.

        Args:
            key: of what the record tells.
            method: one of :data:`RECORDABLE`.
            args: its arguments, records or plain values; not changed afterwards.
            options: its keyword arguments.
        """
        if method not in RECORDABLE:
            raise ValueError(f"{method} can't be recorded: a second call might do harm")
        with self._lock:
            # At the end, also in another's place: what was put before it is written before it.
            self._waiting.pop(key, None)
            if len(self._waiting) + len(self._writing) >= PENDING_MAX:
                self.dropped_count += 1
                if self._full_since is None:
                    text = (
                        f"{PENDING_MAX} records wait for the database {self._store.place} and no more can: what casts "
                        "tell from now on is lost. Mend the database"
                    )
                    self._full_since = Problem("database", text, self._store.now())
                return
            self._waiting[key] = Write(method, args, options)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Write what is put, until cancelled."""
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
                # Not woken earlier by new records: the database has its own pace.
                await asyncio.sleep(retry_s)
                retry_s = min(RETRY_MAX_S, retry_s * 2)
            else:
                retry_s = RETRY_FIRST_S
                self._problem = self._full_since = None
                if self._spooled and not self.pending_count:
                    self._forget_spool()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all is written, but not for longer; returns whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.pending_count:
                    self._idle.clear()
                    await self._idle.wait()
        return not self.pending_count

    def close(self) -> None:
        """Keep what isn't written in the spool, for the next start. Call it after :meth:`run` has ended."""
        if self.pending_count:
            self._save()
            _log.warning("%d records are kept in %s for the next start", self.pending_count, self._spool)

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _write_waiting(self) -> None:
        """Write all that waits now; what is put meanwhile waits for the next time, so that nothing starves."""
        with self._lock:
            # What failed before is older, unless something newer took its place.
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
            except Exception:  # noqa: BLE001  one of them is at fault: the others shall not be lost with it
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
        except Exception as error:  # noqa: BLE001  whatever it is, those behind it must be written
            self.dropped_count += 1
            _log.exception("a record can't be written and is dropped: %s: %s", write.method, error)

    async def _failed(self, error: DatabaseError) -> None:
        since = self._problem.since if self._problem is not None else self._store.now()
        if self._problem is None:
            _log.error("records wait for the database: %s", error)
        text = f"{self.pending_count} records wait until the database works again: {error}"
        self._problem = Problem("database", text, since)
        await asyncio.to_thread(self._save)

    # -- the spool -------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Keep what waits in a file, so that even a kill loses nothing of it."""
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
                    line |= {"args": to_data(write.args), "options": to_data(write.options)}
                    write_all(descriptor, pack_line(line))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            partial.replace(self._spool)
            sync_directory(self._spool.parent)
            self._spooled = True
        except OSError as error:
            _log.error("records that wait can't be kept in %s: %s", self._spool, error)

    def _load(self) -> None:
        """Take up what an earlier run kept."""
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
    """The same calls, those for machines of one cast that follow each other as one: all of them cost little more."""
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
            before.args[0].append(write.args[0])
        else:
            joined.append(Write("casts.put_machines", ([write.args[0]],), write.options))
    return joined


def _write_of(data: dict[str, Any]) -> Write:
    """A line of the spool as a call, its records of the types that the method wants."""
    if data["method"] not in RECORDABLE:
        raise ValueError(f"unknown method {data['method']!r}")
    names, hints = _signature(data["method"])
    args = tuple(from_data(hints[name], value) for name, value in zip(names, data["args"], strict=False))
    options = {name: from_data(hints[name], value) for name, value in data["options"].items()}
    return Write(data["method"], args, options)


@functools.cache
def _signature(method: str) -> tuple[list[str], dict[str, Any]]:
    part, _, name = method.partition(".")
    function: Callable[..., object] = getattr(_REPOSITORIES[part], name)
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    return names, typing.get_type_hints(function)
