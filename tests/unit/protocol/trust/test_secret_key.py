"""An operator must get the same key back from its file, and must learn of a wrong passphrase or a damaged file."""

from __future__ import annotations

import base64

import pytest

from protocol.errors import ConfigurationError
from protocol.trust.minisign import verify
from protocol.trust.secret_key import DEFAULT_LIMITS, ScryptLimits, SecretKey, is_encrypted, parse_secret_key
from tests.support.signing import SIGNER

CHEAP = ScryptLimits(operations=32768, memory_bytes=1 << 20)

# Made by Debian's minisign 0.11: minisign -G -W; it writes plain keys without a checksum.
DEBIAN_PLAIN = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAVGsp53/+pwEbeiw0qAna+OadK0HFzU4+9b0ijS9xyR8DmKukLj6MmKO0PoGl+x7brnPhnLI11JIIJlLdimk8kdoVt0mQJQF8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""


def _altered(text: str, offset: int) -> str:
    comment, line = text.splitlines()
    data = bytearray(base64.b64decode(line))
    data[offset] ^= 1
    return f"{comment}\n{base64.b64encode(data).decode()}\n"


def test_plain_keys_survive_their_file() -> None:
    text = SIGNER.file_text()
    assert not is_encrypted(text)
    assert parse_secret_key(text) == SIGNER


def test_debians_plain_key_is_read() -> None:
    key = parse_secret_key(DEBIAN_PLAIN)
    assert key.public.text == "RWRUaynnf/6nAaO0PoGl+x7brnPhnLI11JIIJlLdimk8kdoVt0mQJQF8"
    assert verify(b"m", key.sign(b"m", trusted_comment=""), key.public)


def test_encrypted_keys_need_their_passphrase() -> None:
    text = SIGNER.file_text(passphrase="a secret é", salt=b"s" * 32, limits=CHEAP)
    assert is_encrypted(text)
    assert parse_secret_key(text, "a secret é") == SIGNER
    for wrong in ("", "a secret", "another"):
        with pytest.raises(ConfigurationError, match="wrong passphrase"):
            parse_secret_key(text, wrong)


def test_an_encrypted_file_holds_nothing_of_the_key() -> None:
    text = SIGNER.file_text(passphrase="p", salt=b"s" * 32, limits=CHEAP)
    assert SIGNER.seed not in base64.b64decode(text.splitlines()[1])


def test_no_repr_shows_the_seed() -> None:
    assert SIGNER.seed.hex() not in repr(SIGNER)
    assert str(SIGNER.seed) not in repr(SIGNER)


def test_scrypt_parameters_are_libsodiums() -> None:
    assert DEFAULT_LIMITS.parameters() == (1 << 20, 1)  # crypto_pwhash_scryptsalsa208sha256 "sensitive"
    assert ScryptLimits(524288, 16777216).parameters() == (1 << 14, 1)  # "interactive"
    assert ScryptLimits(32768, 1 << 30).parameters() == (1 << 10, 1)  # few operations, much memory


def test_damaged_files_are_refused() -> None:
    text = SIGNER.file_text()
    for offset in (54, 62, 94, 126):  # key id, seed, public key, checksum
        with pytest.raises(ConfigurationError, match="damaged"):
            parse_secret_key(_altered(text, offset))
    without_checksum = DEBIAN_PLAIN
    with pytest.raises(ConfigurationError, match="halves"):
        parse_secret_key(_altered(without_checksum, 62))


def test_a_file_that_asks_for_terabytes_is_refused() -> None:
    text = SIGNER.file_text(passphrase="p", salt=b"s" * 32, limits=CHEAP)
    with pytest.raises(ConfigurationError, match="limits"):
        parse_secret_key(_altered(text, 38 + 5), "p")  # 2^40 more operations
    with pytest.raises(ConfigurationError, match="limits"):
        ScryptLimits(2**40, 2**40).parameters()


@pytest.mark.parametrize("text", ["", "untrusted comment: x\nAAAA\n", SIGNER.public.file_text(), "a\nb\nc"])
def test_other_texts_are_no_secret_keys(text: str) -> None:
    with pytest.raises(ConfigurationError, match="secret key of minisign"):
        parse_secret_key(text)


def test_keys_of_other_seeds_differ() -> None:
    assert SecretKey.create(key_id=SIGNER.public.key_id, seed=b"\0" * 32).public != SIGNER.public
