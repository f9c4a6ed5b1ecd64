"""A machine must accept images of its operators' keys only, and stop with the expiry or revocation of a key."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from protocol.errors import ConfigurationError, RollbackError, TrustError, UnsignedImageError
from protocol.trust.image_policy import ImagePolicy, OfferedImage
from protocol.trust.minisign import PublicKey
from protocol.trust.statement import ImageStatement, SignedStatement
from protocol.trust.trusted_keys import TRUSTED_KEYS_MAX, TrustedKey, TrustedKeys
from tests.support.signing import IMPOSTOR, KEYS, NOW, SIGNER, STRANGER, TRUSTED, signed, signed_bytes

IMAGE_ID = bytes(range(32))
STATEMENT = ImageStatement(IMAGE_ID, "lab", 7, ("lab-pc", "uefi"))
OFFERED = OfferedImage(IMAGE_ID, "lab", signed(STATEMENT))
SECOND = datetime.timedelta(seconds=1)


def test_a_trusted_signature_gives_the_statement() -> None:
    verified = KEYS.verify(signed(STATEMENT), NOW)
    assert verified.statement == STATEMENT
    assert verified.key is TRUSTED


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (signed(STATEMENT, STRANGER), "doesn't trust"),
        (signed(STATEMENT, IMPOSTOR), "altered"),
        (dataclasses.replace(signed(STATEMENT), statement=STATEMENT.encode()[:-1]), "altered"),
        (
            SignedStatement(dataclasses.replace(STATEMENT, version=8).encode(), signed(STATEMENT).signature),
            "altered",
        ),
        (SignedStatement(STATEMENT.encode(), ""), "minisign"),
    ],
)
def test_no_other_signature_counts(image: SignedStatement, message: str) -> None:
    with pytest.raises(UnsignedImageError, match=message):
        KEYS.verify(image, NOW)


def test_a_signature_over_something_else_isnt_a_statement() -> None:
    with pytest.raises(TrustError, match="statement") as caught:
        KEYS.verify(signed_bytes(b"a release of another program"), NOW)
    assert not isinstance(caught.value, UnsignedImageError)


def test_expired_statements_and_keys_stop_at_their_time() -> None:
    image = signed(dataclasses.replace(STATEMENT, not_after=NOW))
    assert KEYS.verify(image, NOW - SECOND)
    with pytest.raises(TrustError, match="expired at 2026-11-30T12:00:00Z"):
        KEYS.verify(image, NOW)
    keys = TrustedKeys([dataclasses.replace(TRUSTED, not_after=NOW)])
    assert keys.verify(OFFERED.signed, NOW - SECOND)  # type: ignore[arg-type]
    with pytest.raises(UnsignedImageError, match="expired"):
        keys.verify(OFFERED.signed, NOW)  # type: ignore[arg-type]
    assert keys.usable(NOW) == []


def test_a_revocation_counts_for_every_source_of_the_key() -> None:
    revoked = TrustedKey(SIGNER.public, "signer", revoked="laptop stolen")
    again = TrustedKey(PublicKey(b"other-id", SIGNER.public.key), "kernel command line")
    for keys in ([TRUSTED, revoked], [revoked, TRUSTED], [again, revoked, TRUSTED]):
        trusted = TrustedKeys(keys)
        assert trusted.usable(NOW) == []
        with pytest.raises(UnsignedImageError, match="revoked: laptop stolen"):
            trusted.verify(signed(STATEMENT), NOW)


def test_a_key_with_the_same_id_doesnt_hide_the_signers() -> None:
    for keys in ([IMPOSTOR.public, SIGNER.public], [SIGNER.public, IMPOSTOR.public]):
        trusted = TrustedKeys(TrustedKey(key, key.text) for key in keys)
        assert trusted.verify(signed(STATEMENT), NOW).key.name == SIGNER.public.text


def test_key_files_keep_expiry_and_revocation() -> None:
    for key in (TRUSTED, dataclasses.replace(TRUSTED, not_after=NOW, revoked="2026-11-30 stolen")):
        assert TrustedKey.parse(key.file_text(), "signer") == key
        assert PublicKey.parse(key.file_text()) == SIGNER.public
    assert TrustedKey.parse(SIGNER.public.text, "signer") == TRUSTED


@pytest.mark.parametrize("line", ["not-after: soon", "revokes: x", "RW"])
def test_unknown_lines_of_key_files_are_errors(line: str) -> None:
    """A typo in `revoked:` must not leave the key trusted."""
    with pytest.raises(ConfigurationError, match=r"signer\.pub"):
        TrustedKey.parse(SIGNER.public.file_text() + line + "\n", "signer.pub")


def test_too_many_keys_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="remove old ones"):
        TrustedKeys([TRUSTED] * (TRUSTED_KEYS_MAX + 1))


# -- the policy -------------------------------------------------------------------------------------------------


def test_a_signed_image_is_accepted() -> None:
    accepted = ImagePolicy(KEYS, version_min=7, required_tags=frozenset({"uefi"})).accept(OFFERED, now=NOW)
    assert (accepted.image_id, accepted.name, accepted.reason) == (IMAGE_ID, "lab", "")
    assert accepted.verified is not None


@pytest.mark.parametrize(
    ("offered", "message"),
    [
        (dataclasses.replace(OFFERED, image_id=bytes(32)), "signed statement is about the image"),
        (dataclasses.replace(OFFERED, name="other"), "signed as 'lab'"),
    ],
)
def test_a_statement_about_another_image_is_refused(offered: OfferedImage, message: str) -> None:
    for allow_unsigned in (False, True):
        with pytest.raises(TrustError, match=message):
            ImagePolicy(KEYS, allow_unsigned=allow_unsigned).accept(offered, now=NOW)


def test_versions_below_a_floor_are_refused() -> None:
    policy = ImagePolicy(KEYS)
    assert policy.accept(OFFERED, now=NOW, floors={"lab": 7, "other": 9})
    with pytest.raises(RollbackError, match="version 7, and this machine accepts 8"):
        policy.accept(OFFERED, now=NOW, floors={"lab": 8})
    with pytest.raises(RollbackError):
        dataclasses.replace(policy, version_min=8).accept(OFFERED, now=NOW)


def test_missing_tags_are_named() -> None:
    with pytest.raises(TrustError, match="requires bios"):
        ImagePolicy(KEYS, required_tags=frozenset({"uefi", "bios"})).accept(OFFERED, now=NOW)


def test_without_keys_nothing_is_accepted() -> None:
    with pytest.raises(UnsignedImageError, match="trusts no key"):
        ImagePolicy(TrustedKeys()).accept(OFFERED, now=NOW)
    with pytest.raises(UnsignedImageError, match="isn't signed"):
        ImagePolicy(KEYS).accept(dataclasses.replace(OFFERED, signed=None), now=NOW)


def test_an_allowed_unsigned_image_says_why() -> None:
    accepted = ImagePolicy(KEYS, allow_unsigned=True).accept(
        dataclasses.replace(OFFERED, signed=None), now=NOW
    )
    assert accepted.verified is None
    assert "isn't signed" in accepted.reason
    signed_image = ImagePolicy(KEYS, allow_unsigned=True).accept(OFFERED, now=NOW)
    assert signed_image.verified is not None
