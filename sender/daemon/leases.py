"""Which daemon runs which cast: identity, heartbeats, and when a silent daemon's casts are taken over.

Nobody compares clocks. The owner of a cast counts a beat up every ``LEASE_BEAT_S``; a daemon that has itself looked
again and again for ``LEASE_STALE_S``, and always found the same beat, takes the cast over. A look that fails (the
database is away) starts that time anew, so that after an outage the owner, who beats at once, keeps its casts.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from protocol.errors import ConfigurationError
from sender.store.repositories.leases import LEASE_STALE_S

_ID_BYTES: Final = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """Who owns a cast: one run of one daemon.

    Attributes:
        name: the daemon's, for people.
        daemon_id: of its state directory, so that the daemon's next run knows its own casts.
        run_id: of this process.
    """

    name: str
    daemon_id: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.name}/{self.daemon_id}/{self.run_id}"

    def was_me(self, owner: str) -> bool:
        """Whether ``owner`` is an earlier run of this daemon, which has ended: it holds the directory's lock."""
        _name, _, ids = owner.partition("/")
        daemon_id, _, run_id = ids.partition("/")
        return daemon_id == self.daemon_id and run_id != self.run_id


class StateDirectory:
    """The daemon's own folder, held by one process at a time.

    Attributes:
        path: the folder.
        daemon_id: kept in it.
    """

    def __init__(self, path: Path) -> None:
        """Make the folder if need be, and hold it.

        Raises:
            ConfigurationError: it can't be made or written, or another daemon has it.
        """
        self.path = path
        try:
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ConfigurationError(
                f"the state directory {path} can't be used: {error.strerror}; choose another with "
                "server.state_directory or --state-directory"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise ConfigurationError(
                f"another diskcast daemon uses the state directory {path}: end it, or give this one a directory of "
                "its own"
            ) from error
        self.daemon_id = self._read_id(path / "daemon-id")

    @staticmethod
    def _read_id(path: Path) -> str:
        try:
            text = path.read_text().strip() if path.exists() else ""
            if len(text) != 2 * _ID_BYTES or set(text) - set("0123456789abcdef"):
                text = secrets.token_hex(_ID_BYTES)
                path.write_text(text + "\n")
        except OSError as error:
            raise ConfigurationError(f"{path} can't be read or written: {error.strerror}") from error
        return text

    def owner(self, name: str) -> Owner:
        """What this process is called in the database."""
        return Owner(name, self.daemon_id, secrets.token_hex(_ID_BYTES))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)


class BeatWatch:
    """Finds the casts of others whose beat has stopped."""

    def __init__(self) -> None:
        """Know nobody's beat yet."""
        self._seen: dict[str, tuple[str, int, float]] = {}

    def look(self, beats: Mapping[str, tuple[str, int]], now: float) -> list[tuple[str, str, int]]:
        """Compare with what was seen before.

        Args:
            beats: owner and beat of every cast that somebody owns and that hasn't ended, by its id.
            now: monotonic seconds.

        Returns:
            Id, owner and beat of those whose beat has stood still for :data:`LEASE_STALE_S`.
        """
        seen: dict[str, tuple[str, int, float]] = {}
        stale = []
        for cast_id, (owner, beat) in beats.items():
            since = now
            known = self._seen.get(cast_id)
            if known is not None and known[:2] == (owner, beat):
                since = known[2]
            seen[cast_id] = (owner, beat, since)
            if now - since >= LEASE_STALE_S:
                stale.append((cast_id, owner, beat))
        self._seen = seen
        return stale

    def reset(self) -> None:
        """The look failed: whoever seemed to stand still may only have been out of sight."""
        self._seen = {}
