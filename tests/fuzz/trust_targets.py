"""Fuzz targets of trust: what a machine reads before it trusts anybody, and what people paste and type."""

from __future__ import annotations

import contextlib
import datetime
import random

import numpy as np

from protocol.constants import BLOCK_TAG_BYTES
from protocol.errors import ConfigurationError, TrustError
from protocol.trust.block_cipher import BlockCipher
from protocol.trust.join_code import JoinCode
from protocol.trust.minisign import PublicKey, parse_signature_untrusted
from protocol.trust.pin import parse_pin, pin_matches, pin_of
from protocol.trust.secret_key import SecretKey
from protocol.trust.statement import ImageStatement, SignedStatement, parse_statement_untrusted
from protocol.trust.tickets import JOIN_KEY_BYTES, Ticket, TicketError, issue_ticket, verify_ticket_untrusted
from protocol.trust.trusted_keys import TrustedKey
from tests.fuzz.target import Target

CAST_ID = 0x1234ABCD
JOIN_KEY = bytes(range(JOIN_KEY_BYTES))
BLOCK_KEY = bytes(range(32))
PIN = pin_of(b"certificate")
SECRET_KEY = SecretKey.create(key_id=bytes(range(8)), seed=bytes(range(32)))


def _statements() -> list[bytes]:
    later = datetime.datetime(2031, 1, 1, tzinfo=datetime.UTC)
    return [
        ImageStatement(bytes(32), "lab-2026", 7).encode(),
        ImageStatement(
            bytes(32), "lab 2026", 2**64 - 1, ("lab-pc", "uefi"), later, extensions=(("x-build", "14 b"),)
        ).encode(),
    ]


def _signature_text(message: bytes) -> str:
    return SECRET_KEY.sign(message, trusted_comment="timestamp:1 file:golden.dci").file_text()


def _signatures() -> list[bytes]:
    return [_signature_text(message).encode() for message in _statements()]


def _text(data: bytes) -> str:
    """Return text as JSON may carry it: any characters, lone surrogates too."""
    return data.decode("utf-8", "surrogatepass" if data[:1] < b"\x80" else "replace")


def _lenient_text(data: bytes) -> str:
    try:
        return _text(data)
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parse_key(data: bytes) -> object:
    text = _lenient_text(data)
    with contextlib.suppress(ConfigurationError):
        PublicKey.parse(text)
    return TrustedKey.parse(text, "key")


def _keys() -> list[bytes]:
    public = SECRET_KEY.public.file_text()
    return [
        public.encode(),
        SECRET_KEY.public.text.encode(),
        f"{public}not-after: 2031-01-01T00:00:00Z\nrevoked: stolen\n".encode(),
    ]


def _parse_pins(data: bytes) -> object:
    pin = parse_pin(_lenient_text(data))
    return pin_matches(pin, b"certificate")


def _verify_ticket(data: bytes) -> object:
    return verify_ticket_untrusted(_lenient_text(data), JOIN_KEY, CAST_ID, 1_000.0)  # type: ignore[arg-type]


def _tickets() -> list[bytes]:
    return [
        issue_ticket(JOIN_KEY, Ticket(CAST_ID, machine_id, 2_000)).encode()  # type: ignore[arg-type]
        for machine_id in ("m0123456789ab", "m")
    ]


def _join_codes() -> list[bytes]:
    code = JoinCode(PIN[:20], random.Random(1).choice(["abcdefghijkl"])).text
    return [code.encode(), code.upper().replace("-", " ").encode()]


def _open_block(data: bytes) -> object:
    sealed = np.frombuffer(bytearray(data), np.uint8)
    stored = np.zeros(max(0, sealed.size - BLOCK_TAG_BYTES), np.uint8)
    return BlockCipher(BLOCK_KEY).open_into_untrusted(1, 7, sealed, stored)


def _sealed_blocks() -> list[bytes]:
    stored = b"content of a block" * 20
    sealed = np.zeros(len(stored) + BLOCK_TAG_BYTES, np.uint8)
    BlockCipher(BLOCK_KEY).seal_into(1, 7, memoryview(stored), sealed)
    return [sealed.tobytes()]


TARGETS = (
    Target("encrypted block", _open_block, (), _sealed_blocks),
    Target(
        "minisign signature",
        lambda data: parse_signature_untrusted(_lenient_text(data)),
        (TrustError,),
        _signatures,
    ),
    Target("image statement", parse_statement_untrusted, (TrustError,), _statements),
    Target(
        "signed statement of a header",
        SignedStatement.from_bytes_untrusted,
        (TrustError,),
        lambda: [SignedStatement(message, _signature_text(message)).to_bytes() for message in _statements()],
    ),
    Target("public key", _parse_key, (ConfigurationError,), _keys),
    Target(
        "certificate pin",
        _parse_pins,
        (ConfigurationError,),
        lambda: [PIN.encode(), PIN[:20].upper().encode()],
    ),
    Target("join code", lambda data: JoinCode.parse(_lenient_text(data)), (ConfigurationError,), _join_codes),
    Target("ticket", _verify_ticket, (TicketError,), _tickets),
)
