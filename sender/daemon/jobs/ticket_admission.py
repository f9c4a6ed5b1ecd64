"""Admission to a daemon's cast by tickets alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

from protocol.model.session_records import CastId
from protocol.trust.tickets import TicketError, TicketRefusal, verify_ticket_untrusted
from sender.cast.session.admission import AdmittedMachine

_LOG_INTERVAL_S: Final = 5.0
"""Shortest interval between two log lines about refused requests; the counter has them all."""

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

    def __init__(self, join_key: bytes, cast_id: CastId, is_revoked: Callable[[str], bool]) -> None:
        """Admit machines to one cast.

        Args:
            join_key: of the cast, from the database.
            cast_id: the cast.
            is_revoked: returns whether a machine is revoked, whose ticket may be valid for some seconds more.
        """
        self._join_key = join_key
        self._cast_id = cast_id
        self._is_revoked = is_revoked
        self._logged_at = -_LOG_INTERVAL_S
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
        if now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            _log.warning(
                "join_refused",
                cast=f"{self._cast_id:08x}",
                address=address,
                reason=reason.name.lower(),
                total=self.refused_counts.total(),
            )
