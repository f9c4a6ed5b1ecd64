"""A machine must accept the pinned certificate only, however the operator typed its pin."""

from __future__ import annotations

import pytest

from protocol.errors import ConfigurationError
from protocol.trust.pin import PIN_CHARACTERS, PIN_CHARACTERS_MIN, parse_pin, pin_matches, pin_of

CERTIFICATE = b"a certificate in DER"
PIN = pin_of(CERTIFICATE)


def test_a_pin_is_52_characters_of_base32() -> None:
    assert len(PIN) == PIN_CHARACTERS
    assert parse_pin(PIN) == PIN
    # The SHA-256 of nothing, in base32 by coreutils: sha256sum, xxd -r -p, base32.
    assert pin_of(b"") == "4oymiquy7qobjgx36tejs35zeqt24qpemsnzgtfeswmrw6csxbkq"


def test_whole_pin_and_prefix_match_only_their_certificate() -> None:
    for length in (PIN_CHARACTERS_MIN, PIN_CHARACTERS_MIN + 1, PIN_CHARACTERS):
        assert pin_matches(PIN[:length], CERTIFICATE)
        assert not pin_matches(PIN[:length], CERTIFICATE + b".")
        assert not pin_matches("a" + PIN[1:length] if PIN[0] != "a" else "b" + PIN[1:length], CERTIFICATE)


def test_short_or_long_pins_never_match() -> None:
    assert not pin_matches("", CERTIFICATE)
    assert not pin_matches(PIN[: PIN_CHARACTERS_MIN - 1], CERTIFICATE)
    assert not pin_matches(PIN + "a", CERTIFICATE)


def test_typed_pins_are_read_as_people_type_them() -> None:
    groups = "-".join(PIN[start : start + 4] for start in range(0, 20, 4))
    assert parse_pin(f" {groups.upper()} ") == PIN[:20]


@pytest.mark.parametrize("text", ["", "abc", PIN[:19], PIN + "a", "1" * 20, PIN[:19] + "ä"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="certificate's pin"):
        parse_pin(text)
