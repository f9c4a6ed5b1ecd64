"""Feedback messages, receiver to sender, authenticated by a key of that receiver's.

::

    prefix (16) | fields: msgpack | tag (16): keyed BLAKE2s (RFC 7693 section 2.9) of all before

The prefix names the receiver and counts its datagrams, so that everything is checked before msgpack is decoded.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, NamedTuple

from protocol.constants import CONTROL_DATAGRAM_BYTES_MAX, FEEDBACK_MAC_BYTES, WIRE_MAGIC, WIRE_VERSION
from protocol.errors import WireError
from protocol.wire.codec import (
    FEEDBACK_PREFIX,
    PREFIX_BYTES,
    check_start_untrusted,
    decode_body_untrusted,
    encode_body,
)
from protocol.wire.messages import FEEDBACK_MESSAGES, Nack, Poisoned, Report

FeedbackMessage = Nack | Report | Poisoned

_BY_TYPE: Final[dict[int, type]] = {cls.WIRE_TYPE: cls for cls in FEEDBACK_MESSAGES}  # type: ignore[attr-defined]
_BYTES_MIN: Final = PREFIX_BYTES + 1 + FEEDBACK_MAC_BYTES


def encode_feedback(
    message: FeedbackMessage, *, cast_id: int, receiver_id: int, counter: int, key: bytes
) -> bytes:
    """Return the datagram of a receiver's message.

    Raises:
        WireError: a field is out of its range, or the datagram would exceed the control limit.
    """
    prefix = FEEDBACK_PREFIX.pack(
        WIRE_MAGIC, WIRE_VERSION, message.WIRE_TYPE, cast_id, receiver_id, 0, counter
    )
    body = prefix + encode_body(message)
    datagram = body + _mac(body, key)
    if len(datagram) > CONTROL_DATAGRAM_BYTES_MAX:
        raise WireError("too_long", f"{type(message).__name__} of {len(datagram)} bytes")
    return datagram


class FeedbackSource(NamedTuple):
    """The variable part of a feedback datagram's prefix."""

    type: int
    cast_id: int
    receiver_id: int
    counter: int


def feedback_source_untrusted(datagram: bytes) -> FeedbackSource:
    """Decode the first 16 bytes; takes a microsecond, since a flood of forged datagrams passes here.

    Raises:
        WireError: they aren't those of a feedback message.
    """
    if not _BYTES_MIN <= len(datagram) <= CONTROL_DATAGRAM_BYTES_MAX:
        check_start_untrusted(datagram, _BYTES_MIN)
    magic, version, wire_type, cast_id, receiver_id, reserved, counter = FEEDBACK_PREFIX.unpack_from(datagram)
    if magic != WIRE_MAGIC or version != WIRE_VERSION:
        check_start_untrusted(datagram, _BYTES_MIN)
    if wire_type not in _BY_TYPE:
        raise WireError("bad_type")
    if reserved or not counter:
        raise WireError("bad_field")
    return FeedbackSource(wire_type, cast_id, receiver_id, counter)


def check_feedback_mac(datagram: bytes, key: bytes) -> None:
    """Raise :class:`WireError` ``bad_mac`` unless the datagram's tag was made with ``key``."""
    if not hmac.compare_digest(_mac(datagram[:-FEEDBACK_MAC_BYTES], key), datagram[-FEEDBACK_MAC_BYTES:]):
        raise WireError("bad_mac")


def feedback_body_untrusted(source: FeedbackSource, datagram: bytes) -> FeedbackMessage:
    """Decode the message of an authenticated datagram: members may be hostile as well.

    Raises:
        WireError: the fields aren't well-formed.
    """
    message: FeedbackMessage = decode_body_untrusted(
        _BY_TYPE, source.type, datagram[PREFIX_BYTES:-FEEDBACK_MAC_BYTES]
    )
    return message


def decode_feedback_untrusted(datagram: bytes) -> tuple[FeedbackSource, FeedbackMessage]:
    """Decode prefix and message without authentication.

    Raises:
        WireError: the datagram isn't a well-formed feedback message.
    """
    source = feedback_source_untrusted(datagram)
    return source, feedback_body_untrusted(source, datagram)


def _mac(body: bytes, key: bytes) -> bytes:
    return hashlib.blake2s(body, key=key, digest_size=FEEDBACK_MAC_BYTES).digest()
