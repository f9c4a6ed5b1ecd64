"""Admission to a daemon's cast by tickets alone."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from protocol.model.session_records import CastId
from protocol.trust.tickets import TicketError, TicketRefusal, verify_ticket_untrusted
from sender.cast.session.admission import AdmittedMachine

_NOTE_INTERVAL_S: Final = 60.0
"""Shortest interval between two notes of one reason: a flood of refused requests must not fill log and audit."""

_log = structlog.get_logger(__name__)


class TicketAdmission:
    """The rule of a daemon's casts: machines with a valid ticket may join, each under its own identity.

    Attributes:
        receivers_per_address_max: None: tickets limit the receivers, and machines behind a router share an address.
        proves_membership: True: a ticket is a secret of one machine.
        refused_counts: refused requests by reason, for metrics.
    """

    receivers_per_address_max: int | None = None
    proves_membership = True

    def __init__(
        self,
        join_key: bytes,
        cast_id: CastId,
        *,
        is_revoked: Callable[[str], bool],
        audit: Callable[[str, str, int], None],
    ) -> None:
        """Admit machines to one cast.

        Args:
            join_key: of the cast, from the database.
            cast_id: the cast.
            is_revoked: returns whether a machine is revoked, whose ticket may be valid for some seconds more.
            audit: records a refusal: address, reason, and the number of refusals for this reason so far.
        """
        self._join_key = join_key
        self._cast_id = cast_id
        self._is_revoked = is_revoked
        self._audit = audit
        self._noted_at: dict[TicketRefusal, float] = {}
        self.refused_counts: Counter[TicketRefusal] = Counter()

    def admit(self, bearer: str, address: str) -> AdmittedMachine | None:
        """Return the machine of a valid ticket; None for everything else."""
        try:
            ticket = verify_ticket_untrusted(bearer, self._join_key, self._cast_id, time.time())
            if self._is_revoked(ticket.machine_id):
                raise TicketError(TicketRefusal.REVOKED)
        except TicketError as error:
            self._note_refusal(error.reason, address)
            return None
        return AdmittedMachine(ticket.machine_id)

    def _note_refusal(self, reason: TicketRefusal, address: str) -> None:
        self.refused_counts[reason] += 1
        now = time.monotonic()
        if now - self._noted_at.get(reason, -math.inf) < _NOTE_INTERVAL_S:
            return
        self._noted_at[reason] = now
        count = self.refused_counts[reason]
        _log.warning(
            "join_refused",
            cast=f"{self._cast_id:08x}",
            address=address,
            reason=reason.name.lower(),
            count=count,
        )
        self._audit(address, reason.name.lower(), count)
