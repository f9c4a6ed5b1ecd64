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
from sender.store.records.problems import Problem, ProblemKind
from sender.store.repositories.audit import Audit
from sender.store.repositories.boots import Boots
from sender.store.repositories.captures import Captures
from sender.store.repositories.casts import Casts
from sender.store.repositories.credentials import Credentials
from sender.store.repositories.enrolments import Enrolments
from sender.store.repositories.history import History
from sender.store.repositories.idempotency import IdempotencyKeys
from sender.store.repositories.image_entries import ImageEntries
from sender.store.repositories.image_requests import ImageRequests
from sender.store.repositories.image_uses import ImageUses
from sender.store.repositories.images import Images
from sender.store.repositories.leases import Leases
from sender.store.repositories.machine_hardware import HardwareRecords
from sender.store.repositories.machines import Machines
from sender.store.repositories.patch_inputs import PatchInputs
from sender.store.repositories.retention import Retention
from sender.store.repositories.rooms import Rooms
from sender.store.repositories.schedules import Schedules
from sender.store.repositories.tokens import Tokens
from sender.store.repositories.transactions import Database
from sender.store.repositories.wakes import Wakes

THREADS_COUNT = 4
"""Threads of :meth:`Store.run`; a transaction takes milliseconds, so four do hundreds a second."""
RUN_WAIT_S = 10.0
"""Timeout of a call; a running transaction still finishes after it."""
RUN_PENDING_MAX = 512
"""Waiting calls: many more than four threads complete before the timeout on a busy disk. More are refused at once.
Simultaneous requests of a whole room go through :mod:`sender.store.group_commit`."""
UPKEEP_INTERVAL_S = 60.0
BACKUP_INTERVAL = timedelta(hours=24)
JOURNAL_BYTES_MAX = 32 << 20
"""Size of the journal that triggers a backup: replaying so much takes seconds, not minutes."""

_T = TypeVar("_T")
_P = ParamSpec("_P")
_log = logging.getLogger(__name__)


class Store:
    """All records of a daemon. Thread-safe. Opened by :func:`sender.store.open_store.open_store`.

    The attributes are the repositories; each call of their methods is a transaction.
    """

    def __init__(self, database: Database, guard: contextlib.ExitStack) -> None:
        self._database = database
        self._guard = guard
        self.audit = Audit(database)
        self.rooms = Rooms(database, self.audit)
        self.machines = Machines(database, self.audit)
        self.patch_inputs = PatchInputs(database, self.audit)
        self.hardware = HardwareRecords(database)
        self.boots = Boots(database, self.audit, self.machines, self.rooms)
        self.enrolments = Enrolments(database, self.audit, self.machines, self.boots)
        self.image_requests = ImageRequests(database, self.audit)
        self.captures = Captures(database, self.audit)
        self.casts = Casts(database, self.audit)
        self.leases = Leases(database)
        self.schedules = Schedules(database, self.audit)
        self.wakes = Wakes(database, self.audit)
        self.tokens = Tokens(database, self.audit)
        self.credentials = Credentials(database, self.audit)
        self.history = History(database)
        self.images = Images(database, self.audit)
        self.image_entries = ImageEntries(database, self.audit)
        self.image_uses = ImageUses(database)
        self.idempotency = IdempotencyKeys(database)
        self.retention = Retention(database, self.audit)
        self._threads = ThreadPoolExecutor(THREADS_COUNT, thread_name_prefix="database")
        self._pending_count = 0
        self._closing = threading.Event()
        self._upkeep = threading.Thread(target=self._run_upkeep, name="database-upkeep", daemon=True)
        self._upkeep_problem: Problem | None = None

    @property
    def problem(self) -> Problem | None:
        """Failure of the last use of the database, or of the last backup; None without one."""
        return self._database.problem or self._upkeep_problem

    @property
    def place(self) -> str:
        """File or URL of the database, without a password."""
        return self._database.place.text

    @property
    def exclusive(self) -> bool:
        """True if no other daemon can share the database: a file belongs to one daemon."""
        return self._database.place.path is not None

    def now(self) -> datetime:
        """Return the time for new records."""
        return self._database.now()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Run this thread's calls in one transaction: all of them or, if the block raises, none."""
        with self._database.transaction():
            yield

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a method of the store, or a function that calls several, in one of the store's own threads.

        Raises the function's exceptions, and ``DatabaseUnavailableError`` after :data:`RUN_WAIT_S` or if too many calls
        wait already. A call that timed out may still be carried out.
        """
        async with self.limited_wait(self._pending_count, RUN_PENDING_MAX):
            self._pending_count += 1
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))
            finally:
                self._pending_count -= 1

    @contextlib.asynccontextmanager
    async def limited_wait(self, waiting_count: int, waiting_max: int) -> AsyncIterator[None]:
        """Limit a wait for the database to :data:`RUN_WAIT_S`, and the number of waiting requests to ``waiting_max``.

        Raises ``DatabaseUnavailableError`` beyond these limits.
        """
        if waiting_count >= waiting_max:
            raise self._unavailable(
                f"database {self.place}: {waiting_max} requests wait for it already; check whether its disk or its "
                "server is overloaded"
            )
        try:
            async with asyncio.timeout(RUN_WAIT_S):
                yield
        except TimeoutError as error:
            self._database.hang_up()
            raise self._unavailable(
                f"database {self.place}: no answer for {RUN_WAIT_S:g} s; check whether its disk or its server hangs. "
                "The request may still be carried out later"
            ) from error

    def back_up(self) -> Backup | None:
        """Back up the database beside itself and start a new journal; return None for PostgreSQL."""
        if self._database.journal is None:
            return None
        return back_up(self._database.engine, self._database.place)

    def upkeep(self) -> None:
        """Do the periodic work: remove expired answers, sessions and boot tokens, and make a backup if one is due."""
        self.idempotency.expire()
        self.credentials.expire()
        self.boots.expire()
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
        """Finish running transactions, stop the threads and close the database."""
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
        """Start the thread that calls :meth:`upkeep` periodically."""
        self._upkeep.start()

    def _run_upkeep(self) -> None:
        while not self._closing.wait(UPKEEP_INTERVAL_S):
            try:
                self.upkeep()
                self._upkeep_problem = None
            except DatabaseError as error:
                before = self._upkeep_problem
                self._upkeep_problem = Problem(
                    ProblemKind.DATABASE, str(error), before.since if before else self.now()
                )
                _log.warning("database upkeep failed: %s", error)

    def _unavailable(self, text: str) -> DatabaseUnavailableError:
        error = DatabaseUnavailableError(text)
        self._database.note_problem(error)
        return error
