"""Encoding and decoding of every message but SYMBOL, and the reasons for rejecting datagrams.

``decode_*`` functions take untrusted bytes and raise only :class:`protocol.errors.WireError`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TypeVar

import msgpack

from protocol.constants import (
    CONTROL_DATAGRAM_BYTES_MAX,
    FEEDBACK_MAC_BYTES,
    MSGPACK_NESTING_MAX,
    WIRE_MAGIC,
    WIRE_VERSION,
)
from protocol.errors import WireError
from protocol.schema.binary_fields import STRUCT_CODES, Field, UInt
from protocol.wire.messages import (
    CONTROL_MESSAGES,
    FEEDBACK_MESSAGES,
    Announce,
    EndOfTransmission,
    Flush,
    Nack,
    Prefix,
    Report,
    Standing,
)

REJECT_REASONS = (
    "too_short",
    "too_long",
    "bad_magic",
    "bad_version",
    "bad_type",
    "bad_field",
    "bad_payload",
    "bad_mac",
    "foreign_cast",
    "stale_session",
    "unknown_receiver",
    "replayed",
    "surplus",
)
"""Labels of the metric of rejected datagrams: bounded, whatever the network sends."""

ControlMessage = Announce | Flush | EndOfTransmission | Standing
FeedbackMessage = Nack | Report


def _struct_format(fields: tuple[Field, ...]) -> str:
    kinds = [field.kind for field in fields]
    assert all(isinstance(kind, UInt) for kind in kinds)
    return ">" + "".join(STRUCT_CODES[kind.bits] for kind in kinds if isinstance(kind, UInt))


PREFIX = struct.Struct(_struct_format(Prefix.FIELDS))
PREFIX_BYTES = PREFIX.size

_BY_TYPE: dict[int, type] = {cls.WIRE_TYPE: cls for cls in CONTROL_MESSAGES + FEEDBACK_MESSAGES}  # type: ignore[attr-defined]
_Message = TypeVar("_Message")


def _pack(message: ControlMessage | FeedbackMessage, cast_id: int, session_token: int) -> bytes:
    values = []
    for field in message.FIELDS:
        value = getattr(message, field.name)
        field.kind.check(field.name, value)
        values.append(value)
    prefix = PREFIX.pack(WIRE_MAGIC, WIRE_VERSION, message.WIRE_TYPE, cast_id, session_token)
    return prefix + bytes(msgpack.packb(values))


def encode_control(message: ControlMessage, *, cast_id: int, session_token: int) -> bytes:
    """Return the datagram of a sender's message.

    Raises:
        WireError: a field is out of its range, or the datagram would exceed the control limit.
    """
    datagram = _pack(message, cast_id, session_token)
    if len(datagram) > CONTROL_DATAGRAM_BYTES_MAX:
        raise WireError("too_long", f"{type(message).__name__} of {len(datagram)} bytes")
    return datagram


def encode_feedback(message: FeedbackMessage, *, cast_id: int, session_token: int, key: bytes) -> bytes:
    """Return the datagram of a receiver's message, which ends with its keyed tag.

    Raises:
        WireError: as :func:`encode_control`.
    """
    body = _pack(message, cast_id, session_token)
    datagram = body + feedback_mac(body, key)
    if len(datagram) > CONTROL_DATAGRAM_BYTES_MAX:
        raise WireError("too_long", f"{type(message).__name__} of {len(datagram)} bytes")
    return datagram


def feedback_mac(body: bytes, key: bytes) -> bytes:
    """Return the keyed BLAKE2s (RFC 7693 section 2.9) of prefix and body, 128 bits."""
    return hashlib.blake2s(body, key=key, digest_size=FEEDBACK_MAC_BYTES).digest()


def decode_prefix_untrusted(datagram: bytes) -> Prefix:
    """Decode and check the first 16 bytes.

    Raises:
        WireError: ``too_short``, ``too_long``, ``bad_magic`` or ``bad_version``.
    """
    if len(datagram) < PREFIX_BYTES:
        raise WireError("too_short")
    prefix = Prefix(*PREFIX.unpack_from(datagram))
    if prefix.magic != WIRE_MAGIC:
        raise WireError("bad_magic")
    if prefix.version != WIRE_VERSION:
        raise WireError("bad_version")
    return prefix


def decode_control_untrusted(datagram: bytes) -> tuple[Prefix, ControlMessage]:
    """Decode a sender's message; the caller compares cast and token.

    Raises:
        WireError: the datagram isn't a well-formed control message.
    """
    prefix = decode_prefix_untrusted(datagram)
    if len(datagram) > CONTROL_DATAGRAM_BYTES_MAX:
        raise WireError("too_long")
    message = _decode_body_untrusted(prefix.type, datagram[PREFIX_BYTES:])
    if not isinstance(message, ControlMessage):
        raise WireError("bad_type")
    return prefix, message


def decode_feedback_untrusted(datagram: bytes) -> tuple[Prefix, FeedbackMessage]:
    """Decode a receiver's message without checking its tag: :func:`check_feedback_mac` needs the receiver's key.

    Raises:
        WireError: the datagram isn't a well-formed feedback message.
    """
    prefix = decode_prefix_untrusted(datagram)
    if len(datagram) > CONTROL_DATAGRAM_BYTES_MAX:
        raise WireError("too_long")
    if len(datagram) < PREFIX_BYTES + FEEDBACK_MAC_BYTES:
        raise WireError("too_short")
    message = _decode_body_untrusted(prefix.type, datagram[PREFIX_BYTES:-FEEDBACK_MAC_BYTES])
    if not isinstance(message, FeedbackMessage):
        raise WireError("bad_type")
    return prefix, message


def check_feedback_mac(datagram: bytes, key: bytes) -> None:
    """Raise :class:`WireError` ``bad_mac`` unless the datagram's tag was made with ``key``."""
    expected = feedback_mac(datagram[:-FEEDBACK_MAC_BYTES], key)
    if not hmac.compare_digest(expected, datagram[-FEEDBACK_MAC_BYTES:]):
        raise WireError("bad_mac")


def _decode_body_untrusted(wire_type: int, body: bytes) -> object:
    cls = _BY_TYPE.get(wire_type)
    if cls is None:
        raise WireError("bad_type")
    fields: tuple[Field, ...] = cls.FIELDS  # type: ignore[attr-defined]
    _check_nesting_untrusted(body)
    try:
        values = msgpack.unpackb(
            body,
            use_list=False,
            strict_map_key=True,
            max_map_len=0,
            max_ext_len=0,
        )
    except (
        ValueError,
        msgpack.UnpackException,
        RecursionError,
    ) as error:  # msgpack's own errors are ValueErrors
        raise WireError("bad_payload", str(error)) from error
    if type(values) is not tuple or len(values) != len(fields):
        raise WireError("bad_payload", f"{cls.__name__} has {len(fields)} fields")
    return cls(*map(_decode_field_untrusted, fields, values))


def _decode_field_untrusted(field: Field, value: object) -> object:
    field.kind.check(field.name, value)
    if isinstance(field.kind, UInt) and field.kind.members is not None:
        return field.kind.members(value)  # type: ignore[arg-type]
    return value


def _check_nesting_untrusted(body: bytes) -> None:
    """Bound the nesting before msgpack recurses: valid messages nest an array of rows in an array.

    Only a run of array headers nests without payload in between, so checking the first headers is enough.
    """
    depth = 0
    for octet in body[: MSGPACK_NESTING_MAX + 1]:
        if 0x90 <= octet <= 0x9F or octet in (0xDC, 0xDD):
            depth += 1
        else:
            break
    if depth > MSGPACK_NESTING_MAX:
        raise WireError("bad_payload", "nested too deeply")
