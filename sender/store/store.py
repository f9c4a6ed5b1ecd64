"""The daemon's records in SQLite or PostgreSQL: repositories, worker threads and upkeep.

Its methods block for milliseconds; code on the event loop calls them through :meth:`Store.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import ParamSpec, TypeVar

from protocol.errors import DatabaseError, DatabaseUnavailableError
from sender.store.backup.backup import (
    Backup,
    back_up,
    backup_path,
)
from sender.store.backup.journal import find_segments
from sender.store.records.problems import Problem
from sender.store.repositories.audit import Audit
from sender.store.repositories.casts import Casts
from sender.store.repositories.history import History
from sender.store.repositories.idempotency import IdempotencyKeys
from sender.store.repositories.images import Images
from sender.store.repositories.leases import Leases
from sender.store.repositories.machines import Machines
from sender.store.repositories.retention import Retention
from sender.store.repositories.rooms import Rooms
from sender.store.repositories.schedules import Schedules
from sender.store.repositories.tokens import Tokens
from sender.store.repositories.transactions import Database

THREADS_COUNT = 4
"""Threads of :meth:`Store.run`; a transaction takes milliseconds, so four do hundreds a second."""
RUN_WAIT_S = 10.0
"""Nobody waits longer for the database; what runs then still ends by itself."""
RUN_PENDING_MAX = 512
"""Calls that may wait: many more than four threads do in the time that anybody waits for a busy disk. More are refused
at once. What a whole room asks at the same moment goes through :mod:`sender.store.group_commit`."""
UPKEEP_INTERVAL_S = 60.0
BACKUP_INTERVAL = timedelta(hours=24)
JOURNAL_BYTES_MAX = 32 << 20
"""A longer journal is exchanged for a new backup: putting it together again takes seconds, not minutes."""

_T = TypeVar("_T")
_P = ParamSpec("_P")
_log = logging.getLogger(__name__)


class Store:
    """All that is kept. Thread-safe. Made by :func:`open_store`.

    Attributes:
        rooms: and so on: the parts, whose methods are one transaction each.
    """

    def __init__(self, database: Database, guard: contextlib.ExitStack) -> None:
        self._database = database
        self._guard = guard
        self.audit = Audit(database)
        self.rooms = Rooms(database, self.audit)
        self.machines = Machines(database, self.audit)
        self.casts = Casts(database, self.audit)
        self.leases = Leases(database)
        self.schedules = Schedules(database, self.audit)
        self.tokens = Tokens(database, self.audit)
        self.history = History(database)
        self.images = Images(database, self.audit)
        self.idempotency = IdempotencyKeys(database)
        self.retention = Retention(database, self.audit)
        self._threads = ThreadPoolExecutor(THREADS_COUNT, thread_name_prefix="database")
        self._pending_count = 0
        self._closing = threading.Event()
        self._upkeep = threading.Thread(target=self._keep_up, name="database-upkeep", daemon=True)
        self._upkeep_problem: Problem | None = None

    @property
    def problem(self) -> Problem | None:
        """What the last attempt to use the database failed with, or the last backup; None if all is well."""
        return self._database.problem or self._upkeep_problem

    @property
    def place(self) -> str:
        """File or URL of the database, without a password."""
        return self._database.place.text

    @property
    def exclusive(self) -> bool:
        """Whether no other daemon can share it: a file is one daemon's."""
        return self._database.place.path is not None

    def now(self) -> datetime:
        """The time that records get."""
        return self._database.now()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Let several calls of this thread be one transaction: all of them or, when one raises, none."""
        with self._database.transaction():
            yield

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a method of the store, or a function that calls several, in one of the store's own threads.

        Raises what it raises, and ``DatabaseUnavailableError`` when that takes longer than :data:`RUN_WAIT_S` or when
        too many calls wait already. A call that is given up may still be carried out.
        """
        async with self.patience(self._pending_count, RUN_PENDING_MAX):
            self._pending_count += 1
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))
            finally:
                self._pending_count -= 1

    @contextlib.asynccontextmanager
    async def patience(self, waiting_count: int, waiting_max: int) -> AsyncIterator[None]:
        """The limits of every wait for the database: of how many wait already, and of :data:`RUN_WAIT_S`.

        Raises ``DatabaseUnavailableError`` beyond them.
        """
        if waiting_count >= waiting_max:
            raise self._told(
                f"database {self.place}: {waiting_max} requests wait for it already; see whether its disk or its "
                "server is overloaded"
            )
        try:
            async with asyncio.timeout(RUN_WAIT_S):
                yield
        except TimeoutError as error:
            self._database.hang_up()
            raise self._told(
                f"database {self.place}: no answer for {RUN_WAIT_S:g} s; see whether its disk or its server hangs. "
                "What was asked for may still be done later"
            ) from error

    def back_up(self) -> Backup | None:
        """Copy the database beside itself and begin a new journal; None for PostgreSQL, which has its own ways."""
        if self._database.journal is None:
            return None
        return back_up(self._database.engine, self._database.place)

    def upkeep(self) -> None:
        """What is to be done now and then: a backup that is due, old answers forgotten. Done by a thread of its own."""
        self.idempotency.expire()
        path = self._database.place.path
        if self._database.journal is None or path is None:
            return
        age = timedelta.max
        with contextlib.suppress(FileNotFoundError):
            made_at = datetime.fromtimestamp(backup_path(path).stat().st_mtime, UTC)
            age = datetime.now(UTC) - made_at
        size = sum(segment.path.stat().st_size for segment in find_segments(path))
        if age > BACKUP_INTERVAL or size > JOURNAL_BYTES_MAX:
            self.back_up()

    def close(self) -> None:
        """End the threads and close the database; what is being written is finished."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._upkeep.is_alive():
            self._upkeep.join()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._database.engine.dispose()
        if self._database.journal is not None:
            self._database.journal.close()
        self._guard.close()

    def start_upkeep(self) -> None:
        """Begin the thread that does :meth:`upkeep`."""
        self._upkeep.start()

    def _keep_up(self) -> None:
        while not self._closing.wait(UPKEEP_INTERVAL_S):
            try:
                self.upkeep()
                self._upkeep_problem = None
            except DatabaseError as error:
                before = self._upkeep_problem
                self._upkeep_problem = Problem("database", str(error), before.since if before else self.now())
                _log.warning("the database's upkeep failed: %s", error)

    def _told(self, text: str) -> DatabaseUnavailableError:
        error = DatabaseUnavailableError(text)
        self._database.note_problem(error)
        return error
