"""Admission to a daemon's casts: without a valid ticket nobody joins, and each refusal is counted by its reason."""

from __future__ import annotations

import time

from protocol.model.session_records import CastId
from protocol.trust.tickets import Ticket, TicketRefusal, issue_ticket
from sender.cast.session.admission import AdmittedMachine
from sender.daemon.jobs.ticket_admission import TicketAdmission

KEY, OTHER_KEY = bytes(32), bytes([1]) * 32
CAST = CastId(0x1A2B3C4D)


def ticket(machine_id: str = "m-1", *, key: bytes = KEY, cast_id: CastId = CAST, lives_s: float = 60) -> str:
    return issue_ticket(key, Ticket(cast_id, machine_id, int(time.time() + lives_s)))


def test_only_a_valid_ticket_of_a_machine_that_isnt_revoked_admits() -> None:
    audited: list[tuple[str, str, int]] = []
    admission = TicketAdmission(
        KEY,
        CAST,
        is_revoked=lambda machine_id: machine_id == "m-revoked",
        audit=lambda *entry: audited.append(entry),
    )
    assert admission.admit(ticket(), "10.0.0.7") == AdmittedMachine("m-1")
    refused = [
        "",
        "x",
        ticket(key=OTHER_KEY),
        ticket(cast_id=CastId(7)),
        ticket(lives_s=-1),
        ticket("m-revoked"),
    ]
    for bearer in (*refused, *refused):
        assert admission.admit(bearer, "10.0.0.66") is None
    assert admission.refused_counts == dict.fromkeys(
        (
            TicketRefusal.MISSING,
            TicketRefusal.MALFORMED,
            TicketRefusal.FORGED,
            TicketRefusal.FOREIGN_CAST,
            TicketRefusal.EXPIRED,
            TicketRefusal.REVOKED,
        ),
        2,
    )
    reasons = ["missing", "malformed", "forged", "foreign_cast", "expired", "revoked"]
    assert audited == [("10.0.0.66", reason, 1) for reason in reasons], "once a minute, whatever the flood"
