"""Actors: the token, schedule or daemon on whose behalf the daemon does something."""

from __future__ import annotations

import dataclasses

from sender.store.repositories.audit import AuditNote


@dataclasses.dataclass(frozen=True, slots=True)
class Actor:
    """The initiator of a change, as log and audit name it.

    Attributes:
        name: name of the token, ``local``, ``schedule NAME`` or ``daemon NAME``, as in the audit.
        request_id: id of the API call, empty without one; the same in the log and in the audit.
    """

    name: str
    request_id: str = ""

    def note(self, action: str = "", **detail: object) -> AuditNote:
        """Return the audit note of a change; without ``action`` it gets the change's own name."""
        return AuditNote(self.name, action, self.request_id, detail)
