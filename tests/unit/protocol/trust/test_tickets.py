"""Tickets: a machine without one, or with another's, joins no cast."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import MACHINE_ID_BYTES_MAX
from protocol.model.session_records import CastId
from protocol.trust.tickets import (
    TICKET_CHARACTERS_MAX,
    TICKET_PREFIX,
    Ticket,
    TicketError,
    TicketRefusal,
    issue_ticket,
    verify_ticket_untrusted,
)

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
TICKET = Ticket(CastId(0x1A2B3C4D), "m0123456789ab", 1_700_000_060)
NOW = 1_700_000_000.0


def refusal(
    text: str, *, key: bytes = KEY, cast_id: CastId = TICKET.cast_id, now: float = NOW
) -> TicketRefusal:
    with pytest.raises(TicketError) as refused:
        verify_ticket_untrusted(text, key, cast_id, now)
    return refused.value.reason


def test_an_issued_ticket_admits_its_machine_until_it_expires() -> None:
    text = issue_ticket(KEY, TICKET)
    assert verify_ticket_untrusted(text, KEY, TICKET.cast_id, NOW) == TICKET
    assert verify_ticket_untrusted(text, KEY, TICKET.cast_id, TICKET.expires_at - 0.001) == TICKET
    assert refusal(text, now=TICKET.expires_at) is TicketRefusal.EXPIRED


def test_a_ticket_of_another_cast_or_another_database_admits_nobody() -> None:
    text = issue_ticket(KEY, TICKET)
    assert refusal(text, cast_id=CastId(1)) is TicketRefusal.FOREIGN_CAST
    assert refusal(text, key=OTHER_KEY) is TicketRefusal.FORGED


def test_a_changed_machine_or_expiry_is_noticed() -> None:
    text = issue_ticket(KEY, TICKET)
    content = bytearray(base64.urlsafe_b64decode(text.removeprefix(TICKET_PREFIX) + "=="))
    for index in range(5, len(content)):
        altered = bytearray(content)
        altered[index] ^= 1
        altered_text = TICKET_PREFIX + base64.urlsafe_b64encode(altered).decode().rstrip("=")
        assert refusal(altered_text) is TicketRefusal.FORGED


def test_the_longest_machine_id_fits() -> None:
    ticket = Ticket(TICKET.cast_id, "m" * MACHINE_ID_BYTES_MAX, TICKET.expires_at)
    text = issue_ticket(KEY, ticket)
    assert len(text) <= TICKET_CHARACTERS_MAX
    assert verify_ticket_untrusted(text, KEY, TICKET.cast_id, NOW) == ticket


@given(st.one_of(st.text(), st.text("dcj_AZaz09-_=", max_size=200).map(lambda text: TICKET_PREFIX + text)))
def test_no_text_from_the_network_raises_anything_else(text: str) -> None:
    assert refusal(text) in TicketRefusal


def test_no_ticket_is_named_as_the_reason() -> None:
    assert refusal("") is TicketRefusal.MISSING
    assert refusal("dct_enrol_x") is TicketRefusal.MALFORMED
