"""Statements, signatures and keys of any content: one encoding each, and only documented errors for garbage."""

from __future__ import annotations

import contextlib
import datetime

from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigurationError, TrustError, UnsignedImageError
from protocol.trust.minisign import parse_signature_untrusted
from protocol.trust.secret_key import parse_secret_key
from protocol.trust.statement import (
    ImageStatement,
    PatchPolicy,
    SignedStatement,
    parse_statement_untrusted,
)
from protocol.trust.trusted_keys import TrustedKey
from tests.support.signing import KEYS, NOW, SIGNER, signed, signed_bytes

TAGS = st.lists(
    st.from_regex(r"[a-z0-9.-]{1,16}", fullmatch=True).filter(lambda tag: tag != "none"), max_size=8
)
NAMES = st.from_regex(r"[!-~]([ -~]{0,62}[!-~])?", fullmatch=True)
TIMES = st.datetimes(min_value=NOW.replace(year=1000, tzinfo=None), timezones=st.just(datetime.UTC)).map(
    lambda when: when.replace(microsecond=0)
)
STATEMENTS = st.builds(
    ImageStatement,
    image_id=st.binary(min_size=32, max_size=32),
    name=NAMES,
    version=st.integers(0, 2**64 - 1),
    tags=TAGS.map(lambda tags: tuple(sorted(set(tags)))),
    not_after=st.none() | TIMES,
    patches=st.sampled_from(PatchPolicy),
    extensions=st.dictionaries(st.from_regex(r"x-[a-z0-9-]{1,8}", fullmatch=True), NAMES, max_size=3).map(
        lambda fields: tuple(sorted(fields.items()))
    ),
)


@given(STATEMENTS)
def test_statements_have_one_encoding(statement: ImageStatement) -> None:
    data = statement.encode()
    assert parse_statement_untrusted(data) == statement
    both = signed(statement)
    assert SignedStatement.from_bytes_untrusted(both.to_bytes()) == both


@given(STATEMENTS, st.data())
def test_an_altered_statement_is_refused_or_says_something_else(
    statement: ImageStatement, data: st.DataObject
) -> None:
    """Parsing may not be lenient: bytes that differ never parse to the same statement."""
    encoded = bytearray(statement.encode())
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        parsed = parse_statement_untrusted(bytes(encoded))
    except TrustError:
        return
    assert parsed != statement
    assert parsed.encode() == bytes(encoded)


@given(st.binary(max_size=1200) | st.text().map(lambda text: ("diskcast-image-v1\n" + text).encode()))
def test_garbage_raises_only_documented_errors(garbage: bytes) -> None:
    with contextlib.suppress(TrustError):
        parse_statement_untrusted(garbage)
    with contextlib.suppress(UnsignedImageError):
        SignedStatement.from_bytes_untrusted(garbage)
    with contextlib.suppress(TrustError):
        KEYS.verify(signed_bytes(garbage), NOW)


LINES = st.lists(
    st.sampled_from(
        [*SIGNER.sign(b"m", trusted_comment="c").file_text().splitlines(), "", "untrusted comment: "]
    )
    | st.text(max_size=120),
    max_size=6,
).map("\n".join)


@given(LINES)
def test_garbage_is_no_signature_and_no_key(text: str) -> None:
    with contextlib.suppress(UnsignedImageError):
        parse_signature_untrusted(text)
    with contextlib.suppress(ConfigurationError):
        TrustedKey.parse(text, "key")
    with contextlib.suppress(ConfigurationError):
        parse_secret_key(text)
