"""Signatures that minisign makes must be accepted, and nothing else: a gap here lets a stranger image a room."""

from __future__ import annotations

import base64

import pytest

from protocol.errors import ConfigurationError, UnsignedImageError
from protocol.trust.minisign import (
    SIGNATURE_TEXT_BYTES_MAX,
    PublicKey,
    parse_signature_untrusted,
    verify,
)
from tests.support.signing import IMPOSTOR, SIGNER, STRANGER

MESSAGE = b"a statement\n"
SIGNATURE = SIGNER.sign(MESSAGE, trusted_comment="lab 7")

# Made by Debian's minisign 0.11: minisign -G -W; echo hi > m; minisign -S -m m -t 'trusted c'
DEBIAN_KEY = "RWRUaynnf/6nAaO0PoGl+x7brnPhnLI11JIIJlLdimk8kdoVt0mQJQF8"
DEBIAN_SIGNATURE = """untrusted comment: signature from minisign secret key
RURUaynnf/6nAVifTQCtbk0GapKX+9Mkb8nCmn0HaN5srr59RMk1fubLijs5Ztrm2l+xiuMxrD2jhkMOAqDpNy/NJUq0M8/AiQc=
trusted comment: trusted c
6cL8m2uCyVh7GSA3+2q8YpM8mxb0ydM6GFXg5jo25pBeihfK4m1WXRTTdOP1c9pTJ0dkaGVARpvr6c7BXVONCQ==
"""


def test_debians_signature_is_accepted() -> None:
    key, signature = PublicKey.parse(DEBIAN_KEY), parse_signature_untrusted(DEBIAN_SIGNATURE)
    assert verify(b"hi\n", signature, key)
    assert not verify(b"ho\n", signature, key)
    assert key.id_text == "01A7FE7FE7296B54"
    assert signature.trusted_comment == "trusted c"
    assert signature.file_text("signature from minisign secret key") == DEBIAN_SIGNATURE


def test_only_the_signers_key_verifies() -> None:
    assert verify(MESSAGE, SIGNATURE, SIGNER.public)
    assert not verify(MESSAGE, SIGNATURE, STRANGER.public)
    assert not verify(MESSAGE, SIGNATURE, IMPOSTOR.public)
    assert not verify(MESSAGE, SIGNATURE, PublicKey(SIGNER.public.key_id, b"\xff" * 32))


def test_every_signed_bit_counts() -> None:
    text = SIGNATURE.file_text().splitlines()
    for line, position in ((1, 40), (1, 90), (3, 10), (3, 80)):
        altered = list(text)
        letter = "A" if altered[line][position] != "A" else "B"
        altered[line] = altered[line][:position] + letter + altered[line][position + 1 :]
        assert not verify(MESSAGE, parse_signature_untrusted("\n".join(altered) + "\n"), SIGNER.public)
    renamed = SIGNATURE.file_text().replace("lab 7", "lab 8")
    assert not verify(MESSAGE, parse_signature_untrusted(renamed), SIGNER.public)


def test_legacy_signatures_are_refused_with_their_fix() -> None:
    lines = SIGNATURE.file_text().splitlines()
    data = base64.b64decode(lines[1])
    lines[1] = base64.b64encode(b"Ed" + data[2:]).decode()
    with pytest.raises(UnsignedImageError, match="legacy"):
        parse_signature_untrusted("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        SIGNATURE.file_text() + "more\n",
        SIGNATURE.file_text().replace("untrusted comment: ", "comment: "),
        SIGNATURE.file_text().replace("trusted comment: lab", "lab"),
        SIGNATURE.file_text().replace("lab 7", "lab \x1b[2J"),
        SIGNATURE.file_text().replace("lab 7", "l" * SIGNATURE_TEXT_BYTES_MAX),
        SIGNATURE.file_text().replace("RUR", "RUX", 1),
        "\n".join(SIGNATURE.file_text().splitlines()[:2]),
        SIGNATURE.file_text().replace("=\n", "\n", 1),
        SIGNATURE.file_text().replace("\n", "\r\n"),
        "\ud800" * 10,
    ],
)
def test_malformed_signatures_are_refused(text: str) -> None:
    with pytest.raises(UnsignedImageError):
        parse_signature_untrusted(text)


def test_public_keys_are_read_from_a_file_and_from_one_line() -> None:
    key = SIGNER.public
    assert PublicKey.parse(key.text) == key
    assert PublicKey.parse(key.file_text()) == key
    assert PublicKey.parse(key.file_text("lab") + "not-after: never\n") == key
    assert len(key.text) == 56
    assert key.text.startswith("RW")


@pytest.mark.parametrize(
    "text", ["", "RW", SIGNER.public.text[:-4], "untrusted comment: nothing\n", "AA" + SIGNER.public.text[2:]]
)
def test_other_texts_are_no_public_keys(text: str) -> None:
    with pytest.raises(ConfigurationError, match="public key of minisign"):
        PublicKey.parse(text)
