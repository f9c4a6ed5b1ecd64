"""Leases of casts: the daemon's state directory, and the watch for daemons that stopped renewing.

Clocks are never compared. The owner of a cast increments its beat every ``LEASE_BEAT_S``. A daemon that has seen the
same beat for ``LEASE_STALE_S`` takes the cast over. A failed query (the database is unavailable) restarts that time, so
that after an outage the owner, which renews at once, keeps its casts.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Final, Self

from protocol.errors import ConfigurationError
from sender.daemon.jobs.owner import Owner
from sender.store.repositories.leases import IMAGE_GRACE_S, LEASE_STALE_S

_ID_BYTES: Final = 4


class StateDirectory:
    """The daemon's own directory, locked by one process at a time.

    Attributes:
        path: the directory.
        daemon_id: stored in it.
    """

    def __init__(self, path: Path) -> None:
        """Create the directory if necessary, and lock it.

        Raises:
            ConfigurationError: it can't be created or written, or another daemon uses it.
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
                f"another diskcast daemon uses the state directory {path}: stop it, or give this one a directory of "
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
        """Return the name of this process in the database."""
        return Owner(name, self.daemon_id, secrets.token_hex(_ID_BYTES))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)


class BeatWatch:
    """A watch for casts of other daemons whose beat has stopped."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int, float]] = {}

    def observe(
        self, beats: Mapping[str, tuple[str, int]], now: float, without_image: Container[str] = ()
    ) -> list[tuple[str, str, int]]:
        """Compare the beats with those seen before.

        Args:
            beats: owner and beat of every unfinished cast with an owner, by its id.
            now: monotonic seconds.
            without_image: casts whose image this daemon misses.

        Returns:
            Id, owner and beat of the casts whose beat hasn't changed for :data:`LEASE_STALE_S`, and for
            :data:`IMAGE_GRACE_S` more if the image isn't here.
        """
        seen: dict[str, tuple[str, int, float]] = {}
        stale = []
        for cast_id, (owner, beat) in beats.items():
            since = now
            known = self._seen.get(cast_id)
            if known is not None and known[:2] == (owner, beat):
                since = known[2]
            seen[cast_id] = (owner, beat, since)
            grace_s = IMAGE_GRACE_S if cast_id in without_image else 0.0
            if now - since >= LEASE_STALE_S + grace_s:
                stale.append((cast_id, owner, beat))
        self._seen = seen
        return stale

    def reset(self) -> None:
        """Forget all beats: after a failed query, a beat that seems unchanged proves nothing."""
        self._seen = {}
