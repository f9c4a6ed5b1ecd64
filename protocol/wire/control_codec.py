"""Control messages, sender to group: signed by the sender, tagged by the group, each accepted once and in order.

::

    prefix (16) | tag (8): keyed BLAKE2s of prefix and fields | fields: msgpack | signature (64): Ed25519 of all before

The tag needs the group's key. It keeps outsiders from making a receiver verify signatures, which cost a hundred times
more. The signature needs the run's private key, which only the sender has: a member can't end the cast or slow the
room in the sender's name.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.constants import (
    CONTROL_DATAGRAM_BYTES_MAX,
    CONTROL_SIGNATURE_BYTES,
    TAG_BYTES,
    WIRE_MAGIC,
    WIRE_VERSION,
)
from protocol.errors import WireError
from protocol.wire.codec import (
    CONTROL_PREFIX,
    PREFIX_BYTES,
    check_start_untrusted,
    decode_body_untrusted,
    encode_body,
)
from protocol.wire.messages import (
    CONTROL_MESSAGES,
    Announce,
    BlockDigests,
    ControlPrefix,
    EndOfTransmission,
    Flush,
    Standing,
)

ControlMessage = Announce | Flush | EndOfTransmission | Standing | BlockDigests

_BY_TYPE: Final[dict[int, type]] = {cls.WIRE_TYPE: cls for cls in CONTROL_MESSAGES}  # type: ignore[attr-defined]
_BODY_AT: Final = PREFIX_BYTES + TAG_BYTES
_BYTES_MIN: Final = _BODY_AT + 1 + CONTROL_SIGNATURE_BYTES


class ControlSigner:
    """Encoder of one run's control messages.

    Attributes:
        next_counter: counter of the next message; the first is 1.
    """

    def __init__(self, *, cast_id: int, tag_key: bytes, seed: bytes) -> None:
        """Args:
        cast_id: the cast.
        tag_key: key of the group's tags.
        seed: private key of the run's signatures.
        """
        self.next_counter = 1
        self._cast_id = cast_id
        self._tag_key = tag_key
        self._private_key = Ed25519PrivateKey.from_private_bytes(seed)

    def encode(self, message: ControlMessage) -> bytes:
        """Return the datagram of a message; takes 40 µs.

        Raises:
            WireError: a field is out of its range, or the datagram would exceed the control limit.
        """
        body = encode_body(message)
        prefix = CONTROL_PREFIX.pack(
            WIRE_MAGIC, WIRE_VERSION, message.WIRE_TYPE, self._cast_id, self.next_counter
        )
        signed = prefix + _tag(prefix, body, self._tag_key) + body
        datagram = signed + self._private_key.sign(signed)
        if len(datagram) > CONTROL_DATAGRAM_BYTES_MAX:
            raise WireError("too_long", f"{type(message).__name__} of {len(datagram)} bytes")
        self.next_counter += 1
        return datagram


class ControlVerifier:
    """Decoder of one run's control messages at a receiver that joined it."""

    def __init__(self, *, cast_id: int, tag_key: bytes, control_key: bytes, next_counter: int) -> None:
        """Args:
        cast_id: the cast.
        tag_key: key of the group's tags.
        control_key: public key of the run's signatures.
        next_counter: least counter to accept: messages from before the join are replays.
        """
        self._cast_id = cast_id
        self._tag_key = tag_key
        self._public_key = Ed25519PublicKey.from_public_bytes(control_key)
        self._next_counter = next_counter

    def decode_untrusted(self, datagram: bytes) -> ControlMessage:
        """Authenticate and decode a message: the cheap checks first, msgpack last.

        Raises:
            WireError: it isn't the sender's, or it isn't newer than the last one.
        """
        prefix = _prefix_untrusted(datagram)
        if prefix.type not in _BY_TYPE:
            raise WireError("bad_type")
        if prefix.cast_id != self._cast_id:
            raise WireError("foreign_cast")
        body = datagram[_BODY_AT:-CONTROL_SIGNATURE_BYTES]
        tag = _tag(datagram[:PREFIX_BYTES], body, self._tag_key)
        if not hmac.compare_digest(tag, datagram[PREFIX_BYTES:_BODY_AT]):
            raise WireError("bad_tag")
        if prefix.counter < self._next_counter:
            raise WireError("replayed")
        try:
            self._public_key.verify(datagram[-CONTROL_SIGNATURE_BYTES:], datagram[:-CONTROL_SIGNATURE_BYTES])
        except InvalidSignature as error:
            raise WireError("bad_signature") from error
        self._next_counter = prefix.counter + 1
        message: ControlMessage = decode_body_untrusted(_BY_TYPE, prefix.type, body)
        return message


def decode_control_untrusted(datagram: bytes) -> tuple[ControlPrefix, ControlMessage]:
    """Decode a message without authentication: a hint, all that a program outside the group can have.

    Raises:
        WireError: the datagram isn't a well-formed control message.
    """
    prefix = _prefix_untrusted(datagram)
    body = datagram[_BODY_AT:-CONTROL_SIGNATURE_BYTES]
    return prefix, decode_body_untrusted(_BY_TYPE, prefix.type, body)


def control_type_untrusted(datagram: bytes) -> type | None:
    """Return the message class that a datagram claims to be; None for none of the control messages."""
    return _BY_TYPE.get(datagram[3]) if len(datagram) >= PREFIX_BYTES else None


def _prefix_untrusted(datagram: bytes) -> ControlPrefix:
    check_start_untrusted(datagram, _BYTES_MIN)
    return ControlPrefix(*CONTROL_PREFIX.unpack_from(datagram))


def _tag(prefix: bytes, body: bytes, key: bytes) -> bytes:
    return hashlib.blake2s(prefix + body, key=key, digest_size=TAG_BYTES).digest()
