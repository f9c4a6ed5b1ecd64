"""The owner of a lease, as the database names it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """An owner of casts: one run of one daemon.

    Attributes:
        name: of the daemon, for people.
        daemon_id: of its state directory, so that the daemon's next run recognises its own casts.
        run_id: of this process.
    """

    name: str
    daemon_id: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.name}/{self.daemon_id}/{self.run_id}"

    def is_earlier_run(self, owner: str) -> bool:
        """Return whether ``owner`` is an earlier run of this daemon, which must have exited: it held the lock."""
        _name, _, ids = owner.partition("/")
        daemon_id, _, run_id = ids.partition("/")
        return daemon_id == self.daemon_id and run_id != self.run_id
