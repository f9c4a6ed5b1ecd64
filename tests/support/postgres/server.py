"""A real PostgreSQL server for tests: Debian's programs, on the loopback interface, with a temporary data folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.network.lab import LIMIT_S, run
from tests.support.network.ports import free_port_range
from tests.support.programs.processes import require_program

USER = "diskcast"
PASSWORD = "p@ss:w/rd"  # with characters that a URL must quote


class PostgresServer:
    """A running server that creates empty databases.

    PostgreSQL refuses to run as root. For root, its programs run as Debian's user ``postgres``, with the data folder
    below ``/tmp``: other users can't enter pytest's folders.
    """

    def __init__(self) -> None:
        self._postgres = require_program("postgres")
        self._initdb = require_program("initdb")
        self.folder = Path(tempfile.mkdtemp(prefix="diskcast-postgres-", dir="/tmp"))
        self.data = self.folder / "data"
        self._log = self.folder / "log"
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)
        self._command(
            str(self._initdb), "--pgdata", str(self.data), "--username", USER, "--pwfile", str(password_file),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync",
        )  # fmt: skip
        self.port = free_port_range(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        self._databases_count = 0
        self.start()

    @property
    def url(self) -> str:
        """URL of the database ``postgres``, which tests can share, for SQLAlchemy."""
        return self._url("postgres")

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        self._databases_count += 1
        name = f"store_{self._databases_count}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._url(name)

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Connect to a database, with autocommit."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=USER,
            password=PASSWORD,
            dbname=database,
            autocommit=True,
            connect_timeout=int(LIMIT_S),
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._prefix, str(self._postgres), "-D", str(self.data), "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}",
                    "-c", "fsync=off", "-c", "shared_buffers=32MB", "-c", "max_connections=50",
                    "-c", "deadlock_timeout=100ms",
                ],
                stdout=log, stderr=log, cwd="/", start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + LIMIT_S
        while True:
            with contextlib.suppress(psycopg.OperationalError), self.connect():
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL doesn't start: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server as an operator does, without waiting for its clients."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server as a power failure does; its processes notice the end of their parent."""
        self._end(signal.SIGQUIT)

    def restart(self) -> None:
        """Stop the server and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(LIMIT_S)
            self._process = None

    def _command(self, *command: str) -> None:
        run(*self._prefix, *command)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}:p%40ss%3Aw%2Frd@127.0.0.1:{self.port}/{database}"


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server for a ``with`` block."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Run the server of the session, for import in ``conftest.py``. A test that stops it must start it again."""
    with postgres_server() as server:
        yield server
