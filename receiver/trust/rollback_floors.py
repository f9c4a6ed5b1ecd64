"""Rollback floors: the highest version of each signed name that this machine has completed.

A replay of last year's cast, with a valid signature, is refused by them. They need a directory that outlives the
agent; a machine that keeps nothing has ``--min-version``, the kernel command line, and its daemon's assignment.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocol.errors import ConfigurationError
from protocol.trust.statement import STATEMENT_NAME_MAX, STATEMENT_VERSION_MAX

FLOORS_FILE: Final = "rollback-floors.json"

FLOORS_MAX: Final = 1024
"""Names; a machine gets a few in its life."""

_FILE_BYTES_MAX: Final = 256 * 1024
"""A thousand entries with the longest names."""


class RollbackFloors:
    """The floors in a state directory; without one, there are none."""

    def __init__(self, directory: Path | None) -> None:
        """Use ``directory``; None to keep no floors."""
        self._path = None if directory is None else directory / FLOORS_FILE

    def prepare(self) -> None:
        """Make the directory; before a cast, since a floor that can't be kept afterwards doesn't protect the next one.

        Raises:
            ConfigurationError: it can't be written to.
        """
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        if not os.access(self._path.parent, os.W_OK):
            raise self._unwritable(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))

    def load(self) -> Mapping[str, int]:
        """Return the lowest version of each signed name.

        Raises:
            ConfigurationError: the file can't be read, or is damaged: continuing without it would allow a rollback.
        """
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigurationError(
                f"can't read the rollback floors {self._path}: {error.strerror}"
            ) from error
        try:
            floors = json.loads(data)
        except ValueError as error:
            raise self._damaged() from error
        if not isinstance(floors, dict) or not all(_valid(name, version) for name, version in floors.items()):
            raise self._damaged()
        return floors

    def keep(self, name: str, version: int) -> None:
        """Raise the floor of ``name`` to ``version``, durably; a lower one changes nothing.

        Raises:
            ConfigurationError: the floors can't be read or written.
        """
        if self._path is None:
            return
        floors = dict(self.load())
        if floors.get(name, -1) >= version:
            return
        floors[name] = version
        while len(floors) > FLOORS_MAX:
            del floors[next(iter(floors))]
        self._write(json.dumps(floors, indent=1).encode())

    def _write(self, data: bytes) -> None:
        assert self._path is not None
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            temporary.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"can't keep rollback floors in {self._path}: {error.strerror}; make the directory writable, or give "
            "another --state-directory"
        )

    def _damaged(self) -> ConfigurationError:
        return ConfigurationError(
            f"the rollback floors {self._path} are damaged: remove the file if older images may be written again"
        )


def _valid(name: object, version: object) -> bool:
    return (
        isinstance(name, str)
        and 0 < len(name) <= STATEMENT_NAME_MAX
        and type(version) is int
        and 0 <= version <= STATEMENT_VERSION_MAX
    )
