"""Transactions: short, bounded in time, translated errors, one retry where a retry is right, and a joint journal.

A repository's public method is marked :func:`reading` or :func:`writing`; called on its own it is one transaction,
called inside of :meth:`Database.transaction` it is part of that one.
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
from sender.store.database.errors import Place, is_integrity, is_passing, translate
from sender.store.records.problems import Problem

RETRY_WITHIN_S = 3.0
"""A transaction is tried again only if its failure came fast, so that nobody waits for both in vain. PostgreSQL takes a
second to notice a deadlock."""

_T = TypeVar("_T")
_P = ParamSpec("_P")
_R = TypeVar("_R", bound="Repository")


class Database:
    """An engine, the journal beside it, and how transactions are done with them. Thread-safe.

    Args:
        engine: from :func:`sender.store.database.engine.make_engine`.
        place: what messages call it.
        now: the time of records.
        journal: of confirmed changes; None for PostgreSQL, which has its own.
    """

    def __init__(
        self, engine: sa.Engine, place: Place, now: Callable[[], datetime], journal: Journal | None = None
    ) -> None:
        self.engine = engine
        self.place = place
        self.now = now
        self.journal = journal
        self._local = threading.local()
        self._opened: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()
        if self.is_postgresql:
            sa.event.listen(engine, "connect", lambda connection, _: self._opened.add(connection))
        self._problem: Problem | None = None
        self._full = False

    @property
    def problem(self) -> Problem | None:
        """What the last attempt failed with; None if it succeeded."""
        return self._problem

    @property
    def connection(self) -> sa.Connection:
        """The connection of this thread's transaction."""
        connection: sa.Connection | None = getattr(self._local, "connection", None)
        assert connection is not None, "no transaction has begun in this thread"
        return connection

    @property
    def is_postgresql(self) -> bool:
        """Whether it is a server, which others write to at the same time."""
        return self.engine.dialect.name == "postgresql"

    def perform(self, work: Callable[[], _T], *, writes: bool, retry_conflict: bool = False) -> _T:
        """Run ``work`` in a transaction of its own, or as part of the one that this thread is in.

        Args:
            work: uses :attr:`connection`; may run twice, so it keeps nothing outside of the database.
            writes: it changes something.
            retry_conflict: try again once when a rule of the tables was broken, because somebody else was faster.

        Raises the :class:`DatabaseError` tree, and ``ConflictError`` for what contradicts what is recorded.
        """
        if getattr(self._local, "connection", None) is not None:
            return work()
        began = time.monotonic()
        for last in (False, True):
            try:
                with self._begun(writes=writes):
                    return work()
            except (sa.exc.SQLAlchemyError, sqlite3.Error, OverflowError, OSError) as error:
                again = (retry_conflict and is_integrity(error)) or (
                    is_passing(error) and not self._local.committing
                )
                if not last and again and time.monotonic() - began < RETRY_WITHIN_S:
                    continue
                raise self._failed(error) from error
        raise AssertionError("the second attempt returns or raises")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Several writing calls as one transaction: all of them or none. Not tried again by itself."""
        try:
            with self._begun(writes=True) as connection:
                yield connection
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OverflowError, OSError) as error:
            raise self._failed(error) from error

    @contextlib.contextmanager
    def _begun(self, *, writes: bool) -> Iterator[sa.Connection]:
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
        # Reading from a full disk works: only what was written proves that there is room again.
        if not self._full or (self.journal is not None and self.journal.entries_count != entries_count):
            self._problem = None
            self._full = False

    def _failed(self, error: BaseException) -> DiskcastError:
        told = translate(error, self.place)
        if isinstance(told, DatabaseError):
            self.note_problem(told)
        return told

    def note_problem(self, error: DatabaseError) -> None:
        """Show ``error`` as :attr:`problem` until an attempt succeeds."""
        before = self._problem
        since = before.since if before is not None else self.now()
        self._full = self.journal is not None and isinstance(error, DatabaseFullError)
        self._problem = Problem("database", str(error), since)

    def hang_up(self) -> None:
        """End what waits for a server that says nothing, so that the threads are free for when it does again.

        Neither PostgreSQL's own limits nor TCP's help when the server is frozen but its kernel isn't.
        """
        for connection in list(self._opened):
            with contextlib.suppress(psycopg.Error, OSError):
                if connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                    with socket.socket(fileno=os.dup(connection.pgconn.socket)) as copy:
                        copy.shutdown(socket.SHUT_RDWR)

    def insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        """An insert that knows ON CONFLICT, in this database's words."""
        return postgresql.insert(table) if self.is_postgresql else sqlite.insert(table)


class Repository:
    """A part of the store: methods over some tables."""

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
    """A method that only reads, as a transaction."""
    return _transacted(method, writes=False)


def writing(method: Callable[Concatenate[_R, _P], _T]) -> Callable[Concatenate[_R, _P], _T]:
    """A method that changes something, as a transaction."""
    return _transacted(method, writes=True)


def writing_again(method: Callable[Concatenate[_R, _P], _T]) -> Callable[Concatenate[_R, _P], _T]:
    """As :func:`writing`, and tried once more when somebody else was faster to add the same thing."""
    return _transacted(method, writes=True, retry_conflict=True)
