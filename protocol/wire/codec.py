"""The parts that all messages but SYMBOL share: prefix, msgpack body, and the reasons for rejecting datagrams.

Functions named ``*_untrusted`` take bytes from the network and raise only :class:`protocol.errors.WireError`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Protocol

import msgpack

from protocol.constants import (
    CONTROL_DATAGRAM_BYTES_MAX,
    MSGPACK_NESTING_MAX,
    WIRE_MAGIC,
    WIRE_VERSION,
)
from protocol.errors import WireError
from protocol.schema.binary_fields import STRUCT_CODES, Field, UInt
from protocol.wire.messages import ControlPrefix, FeedbackPrefix

REJECT_REASONS: Final = (
    "too_short",
    "too_long",
    "bad_magic",
    "bad_version",
    "bad_type",
    "bad_field",
    "bad_payload",
    "bad_tag",
    "bad_signature",
    "bad_mac",
    "foreign_cast",
    "unknown_receiver",
    "replayed",
    "too_many",
    "surplus",
)
"""Labels of the metric of rejected datagrams: bounded, whatever the network sends."""


class WireMessage(Protocol):
    """A message class of :mod:`protocol.wire.messages`."""

    WIRE_TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Field, ...]]


def _struct_of(fields: tuple[Field, ...]) -> struct.Struct:
    kinds = [field.kind for field in fields]
    assert all(isinstance(kind, UInt) for kind in kinds)
    return struct.Struct(">" + "".join(STRUCT_CODES[kind.bits] for kind in kinds if isinstance(kind, UInt)))


CONTROL_PREFIX: Final = _struct_of(ControlPrefix.FIELDS)
FEEDBACK_PREFIX: Final = _struct_of(FeedbackPrefix.FIELDS)
PREFIX_BYTES: Final = CONTROL_PREFIX.size
assert FEEDBACK_PREFIX.size == PREFIX_BYTES

_START: Final = struct.Struct(">HB")


def foreign_version_untrusted(datagram: bytes) -> int | None:
    """Return the wire version of a diskcast datagram, if it isn't this program's.

    Magic and version are where they are in every version.
    """
    if len(datagram) < _START.size:
        return None
    magic, version = _START.unpack_from(datagram)
    return version if magic == WIRE_MAGIC and version != WIRE_VERSION else None


def other_version_text(peer: str, version: int, *, ours: str = "this program") -> str:
    """Return the error message about a peer of another wire version."""
    older = peer if version < WIRE_VERSION else ours
    return (
        f"{peer} speaks wire version {version}, {ours} speaks version {WIRE_VERSION}: upgrade {older}; all programs of "
        "a cast need the same version"
    )


def check_start_untrusted(datagram: bytes, bytes_min: int) -> None:
    """Check length, magic and version.

    Raises:
        WireError: ``too_short``, ``too_long``, ``bad_magic`` or ``bad_version``.
    """
    if len(datagram) < _START.size:
        raise WireError("too_short")
    magic, version = _START.unpack_from(datagram)
    if magic != WIRE_MAGIC:
        raise WireError("bad_magic")
    if version != WIRE_VERSION:
        raise WireError("bad_version", f"wire version {version}")
    if len(datagram) < bytes_min:
        raise WireError("too_short")
    if len(datagram) > CONTROL_DATAGRAM_BYTES_MAX:
        raise WireError("too_long")


def encode_body(message: WireMessage) -> bytes:
    """Return a message's fields as a msgpack array.

    Raises:
        WireError: a field is out of its range.
    """
    values = []
    for field in message.FIELDS:
        value = getattr(message, field.name)
        field.kind.check(field.name, value)
        values.append(value)
    return bytes(msgpack.packb(values))


def decode_body_untrusted(classes: Mapping[int, type], wire_type: int, body: bytes) -> Any:
    """Decode a message's fields.

    Args:
        classes: the allowed message classes by wire type.
        wire_type: type of the message.
        body: msgpack.

    Raises:
        WireError: ``bad_type``, ``bad_payload`` or ``bad_field``.
    """
    cls = classes.get(wire_type)
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
