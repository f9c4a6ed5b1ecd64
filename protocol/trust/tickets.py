"""Tickets: the proof that a daemon has assigned a cast to a machine, checked without any state.

::

    dcj_ base64url( version 1 | cast_id 4 | expires_at 8 | machine_id, ASCII | HMAC-SHA256 32 )

The key of the MAC is the cast's join key, which the daemons of one database share. Any of them can therefore issue a
ticket, and the one that runs the cast can check it without asking the database.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import hashlib
import hmac
import struct
from typing import Final

from protocol.constants import MACHINE_ID_BYTES_MAX
from protocol.model.session_records import CastId

JOIN_KEY_BYTES: Final = 32
"""As many as the digest has: RFC 2104 section 3."""

TICKET_S: Final = 60
"""Lifetime of a ticket. A receiving agent gets a new one every few seconds; a waiting agent joins at once. A machine
that no daemon answers any more can't join after this time."""

TICKET_PREFIX: Final = "dcj_"
"""Secret scanners and the log's filter find tickets by it."""

_VERSION: Final = 1
_HEADER: Final = struct.Struct(">BIQ")
_MAC_BYTES: Final = hashlib.sha256().digest_size
_DOMAIN: Final = b"diskcast ticket\x00"
"""Keeps the MAC apart from every other use of a join key."""

TICKET_CHARACTERS_MAX: Final = (
    len(TICKET_PREFIX) + -(-(_HEADER.size + MACHINE_ID_BYTES_MAX + _MAC_BYTES) // 3) * 4
)


class TicketRefusal(enum.StrEnum):
    """Reason for refusing a ticket; the value completes the sentence "the ticket …"."""

    MISSING = "is missing"
    MALFORMED = "isn't one"
    FOREIGN_CAST = "is for another cast"
    FORGED = "wasn't issued by a daemon of this cast"
    EXPIRED = "has expired"
    REVOKED = "is of a revoked machine"


class TicketError(Exception):
    """A ticket that admits no machine; the shell counts it by ``reason``."""

    def __init__(self, reason: TicketRefusal) -> None:
        super().__init__(f"the ticket {reason}")
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """A valid ticket.

    Attributes:
        expires_at: seconds since 1970.
    """

    cast_id: CastId
    machine_id: str
    expires_at: int


def issue_ticket(join_key: bytes, ticket: Ticket) -> str:
    """Return the text of a ticket for one machine and one cast."""
    assert len(join_key) == JOIN_KEY_BYTES
    machine_id = ticket.machine_id.encode("ascii")
    assert 0 < len(machine_id) <= MACHINE_ID_BYTES_MAX
    payload = _HEADER.pack(_VERSION, ticket.cast_id, ticket.expires_at) + machine_id
    return TICKET_PREFIX + base64.urlsafe_b64encode(payload + _mac(join_key, payload)).decode().rstrip("=")


def verify_ticket_untrusted(text: str, join_key: bytes, cast_id: CastId, now: float) -> Ticket:
    """Return the ticket of ``text``, if a daemon issued it for ``cast_id`` and it hasn't expired.

    Args:
        text: from the network, of any length.
        join_key: of the cast.
        cast_id: the cast that the machine wants to join.
        now: seconds since 1970.

    Raises:
        TicketError: it admits no machine.
    """
    payload, mac = _split_untrusted(text)
    _version, ticket_cast_id, expires_at = _HEADER.unpack_from(payload)
    if ticket_cast_id != cast_id:
        raise TicketError(TicketRefusal.FOREIGN_CAST)
    if not hmac.compare_digest(mac, _mac(join_key, payload)):
        raise TicketError(TicketRefusal.FORGED)
    if now >= expires_at:
        raise TicketError(TicketRefusal.EXPIRED)
    return Ticket(cast_id, payload[_HEADER.size :].decode("ascii"), expires_at)


def _split_untrusted(text: str) -> tuple[bytes, bytes]:
    """Return payload and MAC of a text that has the form of a ticket."""
    if not text:
        raise TicketError(TicketRefusal.MISSING)
    if len(text) > TICKET_CHARACTERS_MAX or not text.startswith(TICKET_PREFIX) or not text.isascii():
        raise TicketError(TicketRefusal.MALFORMED)
    encoded = text.removeprefix(TICKET_PREFIX)
    try:
        content = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise TicketError(TicketRefusal.MALFORMED) from error
    payload, mac = content[:-_MAC_BYTES], content[-_MAC_BYTES:]
    machine_id = payload[_HEADER.size :]
    if not 0 < len(machine_id) <= MACHINE_ID_BYTES_MAX or payload[0] != _VERSION or not machine_id.isascii():
        raise TicketError(TicketRefusal.MALFORMED)
    return payload, mac


def _mac(join_key: bytes, payload: bytes) -> bytes:
    return hmac.digest(join_key, _DOMAIN + payload, "sha256")
