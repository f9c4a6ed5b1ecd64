"""An operator types one code on thirty machines: a forgiving reader saves walks, and a guess must be hopeless."""

from __future__ import annotations

import pytest

from protocol.errors import ConfigurationError
from protocol.model.session_records import CastId
from protocol.trust.join_code import JoinCode, derive_join_secret, join_code, signer_prefix
from protocol.trust.pin import pin_of
from tests.support.signing import IMPOSTOR, SIGNER, STRANGER

PIN = pin_of(b"certificate")
KEY = bytes(range(32))
CODE = join_code(PIN, KEY, CastId(7))


def test_the_code_is_eight_groups_of_four() -> None:
    assert [len(group) for group in CODE.text.split("-")] == [4] * 8
    assert PIN.startswith(CODE.pin_prefix)
    assert JoinCode.parse(CODE.text) == CODE


@pytest.mark.parametrize(
    "typed",
    [
        CODE.text.upper(),
        CODE.text.replace("-", ""),
        f"  {CODE.text.replace('-', ' ')}\n",
        CODE.text.replace("o", "0").replace("l", "1").replace("b", "8"),
    ],
)
def test_typed_codes_are_read_as_people_type_them(typed: str) -> None:
    assert JoinCode.parse(typed) == CODE


@pytest.mark.parametrize(
    "typed", ["", "abcd", CODE.text[:-1], CODE.text + "a", CODE.text[:-1] + "9", "ä" * 32]
)
def test_other_texts_are_refused_without_repeating_them(typed: str) -> None:
    with pytest.raises(ConfigurationError, match="join code") as caught:
        JoinCode.parse(typed)
    assert not typed or typed not in str(caught.value)


def test_a_signed_image_adds_three_groups_that_name_its_signer() -> None:
    code = join_code(PIN, KEY, CastId(7), SIGNER.public)
    assert [len(group) for group in code.text.split("-")] == [4] * 11
    assert JoinCode.parse(code.text) == code
    assert code.signer == signer_prefix(SIGNER.public) != signer_prefix(STRANGER.public)
    assert (code.pin_prefix, code.secret) == (CODE.pin_prefix, CODE.secret)
    same_id = join_code(PIN, KEY, CastId(7), IMPOSTOR.public)
    assert same_id.signer != code.signer, "the key counts, not its id"


def test_the_secret_belongs_to_one_cast_and_one_sender() -> None:
    assert derive_join_secret(KEY, CastId(7)) == CODE.secret
    others = {derive_join_secret(KEY, CastId(8)), derive_join_secret(KEY[::-1], CastId(7)), CODE.secret}
    assert len(others) == 3


def test_the_secret_is_not_shown_by_accident() -> None:
    assert CODE.secret not in repr(CODE)
