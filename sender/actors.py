"""Actors: the token, schedule or daemon on whose behalf the daemon does something."""

from __future__ import annotations

import dataclasses

from sender.store.repositories.audit import AuditNote


@dataclasses.dataclass(frozen=True, slots=True)
class Actor:
    """Who asks.

    Attributes:
        name: of the token, ``local``, ``schedule NAME`` or ``daemon NAME``: what audit says.
        request_id: of the API call, empty without one; the same in the log and in audit.
    """

    name: str
    request_id: str = ""

    def note(self, action: str = "", **detail: object) -> AuditNote:
        """What audit keeps of a change that was asked for; without ``action`` the change's own name."""
        return AuditNote(self.name, action, self.request_id, detail)
