"""Transactions: short and bounded in time, with translated errors, a retry where it is safe, and the change journal.

A repository's public methods are decorated with :func:`reading` or :func:`writing`. Such a call is a transaction of its
own or, inside :meth:`Database.transaction`, part of that transaction.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from protocol.errors import DatabaseError, DatabaseFullError, DiskcastError
from sender.store.backup.journal import Journal
from sender.store.database.engine import WRITES
from sender.store.database.errors import Place, is_integrity, is_transient, translate
from sender.store.records.problems import Problem, ProblemKind

RETRY_WITHIN_S = 3.0
"""A transaction is retried only if it failed within this time: its caller would wait too long for both attempts.
PostgreSQL takes a second to detect a deadlock."""

_T = TypeVar("_T")
_P = ParamSpec("_P")
_R = TypeVar("_R", bound="Repository")


class Database:
    """Transactions on an engine and its change journal. Thread-safe.

    Args:
        engine: from :func:`sender.store.database.engine.make_engine`.
        place: name of the database in messages.
        now: clock of the records.
        journal: journal of confirmed changes; None for PostgreSQL, which has its own.
    """

    def __init__(
        self, engine: sa.Engine, place: Place, now: Callable[[], datetime], journal: Journal | None = None
    ) -> None:
        self.engine = engine
        self.place = place
        self.now = now
        self.journal = journal
        self._local = threading.local()
        self._open_connections: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        if self.is_postgresql:
            sa.event.listen(engine, "connect", lambda connection, _: self._open_connections.add(connection))
        self._problem: Problem | None = None
        self._full = False

    @property
    def problem(self) -> Problem | None:
        """Failure of the last attempt; None if it succeeded."""
        return self._problem

    @property
    def connection(self) -> sa.Connection:
        """Connection of this thread's transaction."""
        connection: sa.Connection | None = getattr(self._local, "connection", None)
        assert connection is not None, "this thread has no open transaction"
        return connection

    @property
    def is_postgresql(self) -> bool:
        """True for PostgreSQL: a server with other writers at the same time."""
        return self.engine.dialect.name == "postgresql"

    def perform(self, work: Callable[[], _T], *, writes: bool, retry_conflict: bool = False) -> _T:
        """Run ``work`` in a transaction of its own, or as part of this thread's open transaction.

        Args:
            work: uses :attr:`connection`; may run twice, so it has no effect outside of the database.
            writes: ``work`` changes something.
            retry_conflict: retry once after an integrity error: another writer may have added the same row first.

        Raises the :class:`DatabaseError` tree, and ``ConflictError`` for a contradiction to existing records.
        """
        if getattr(self._local, "connection", None) is not None:
            return work()
        started_at = time.monotonic()
        for last in (False, True):
            try:
                with self._started(writes=writes):
                    return work()
            except (sa.exc.SQLAlchemyError, sqlite3.Error, OverflowError, OSError) as error:
                retry = (retry_conflict and is_integrity(error)) or (
                    is_transient(error) and not self._local.committing
                )
                if not last and retry and time.monotonic() - started_at < RETRY_WITHIN_S:
                    continue
                raise self._failed(error) from error
        raise AssertionError("the second attempt returns or raises")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Run the calls of a block in one transaction, all or none; without retries."""
        try:
            with self._started(writes=True) as connection:
                yield connection
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OverflowError, OSError) as error:
            raise self._failed(error) from error

    @contextlib.contextmanager
    def _started(self, *, writes: bool) -> Iterator[sa.Connection]:
        local = self._local
        assert getattr(local, "connection", None) is None, "transactions aren't nested"
        local.committing = False
        with self.engine.connect().execution_options(**{WRITES: writes}) as connection:
            transaction = connection.begin()
            local.connection = connection
            try:
                yield connection
                local.committing = writes
                entries_count = 0 if self.journal is None else self.journal.entries_count
                if self.journal is not None and writes:
                    with self.journal.written(connection):
                        transaction.commit()
                else:
                    transaction.commit()
            except BaseException:
                with contextlib.suppress(sa.exc.SQLAlchemyError, sqlite3.Error):
                    transaction.rollback()
                raise
            finally:
                local.connection = None
        # Reads succeed on a full disk: only a write proves that there is space again.
        if not self._full or (self.journal is not None and self.journal.entries_count != entries_count):
            self._problem = None
            self._full = False

    def _failed(self, error: BaseException) -> DiskcastError:
        translated = translate(error, self.place)
        if isinstance(translated, DatabaseError):
            self.note_problem(translated)
        return translated

    def note_problem(self, error: DatabaseError) -> None:
        """Show ``error`` as :attr:`problem` until an attempt succeeds."""
        before = self._problem
        since = before.since if before is not None else self.now()
        self._full = self.journal is not None and isinstance(error, DatabaseFullError)
        self._problem = Problem(ProblemKind.DATABASE, str(error), since)

    def hang_up(self) -> None:
        """Shut down the connections that wait for a silent server, to free their threads.

        Neither PostgreSQL's timeouts nor TCP's apply when the server is frozen but its kernel isn't.
        """
        for connection in list(self._open_connections):
            with contextlib.suppress(psycopg.Error, OSError):
                if connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as copy:
                        copy.shutdown(socket.SHUT_RDWR)

    def insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        """Return an insert with ON CONFLICT, in the database's dialect."""
        return postgresql.insert(table) if self.is_postgresql else sqlite.insert(table)


class Repository:
    """Base of the repositories: methods over some tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def _connection(self) -> sa.Connection:
        return self._database.connection

    def _now(self) -> datetime:
        return self._database.now()


def _transacted(
    method: Callable[Concatenate[_R, _P], _T], *, writes: bool, retry_conflict: bool = False
) -> Callable[Concatenate[_R, _P], _T]:
    def wrapper(self: _R, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._database.perform(
            lambda: method(self, *args, **kwargs), writes=writes, retry_conflict=retry_conflict
        )

    functools.update_wrapper(wrapper, method)
    return wrapper


def reading(method: Callable[Concatenate[_R, _P], _T]) -> Callable[Concatenate[_R, _P], _T]:
    """Run a method that only reads in a transaction."""
    return _transacted(method, writes=False)


def writing(method: Callable[Concatenate[_R, _P], _T]) -> Callable[Concatenate[_R, _P], _T]:
    """Run a method that changes something in a transaction."""
    return _transacted(method, writes=True)


def writing_again(method: Callable[Concatenate[_R, _P], _T]) -> Callable[Concatenate[_R, _P], _T]:
    """Run a method as :func:`writing` does, with a retry if another writer added the same row first."""
    return _transacted(method, writes=True, retry_conflict=True)
