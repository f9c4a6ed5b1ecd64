"""Signing the patches of a room: one statement over all of them, signed here or on an air-gapped machine."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import ConfigurationError, UnsignedImageError
from protocol.patch.machine_patch import MachinePatch
from protocol.patch.patch_set import PatchSet, SignedPatchSet, parse_patch_set_untrusted
from protocol.trust.minisign import parse_signature_untrusted, verify
from protocol.trust.secret_key import SecretKey
from protocol.trust.statement import SignedStatement
from sender.imaging.statement_transfer import read_signed_statement


def patch_set_of(patches: Sequence[MachinePatch], name: str, not_after: datetime.datetime | None) -> PatchSet:
    """Return the set of the patches of one image.

    Raises:
        ConfigurationError: two patches are for the same machine.
    """
    patch_ids: dict[str, bytes] = {}
    for patch in patches:
        if patch.machine_id in patch_ids:
            raise ConfigurationError(
                f"two patches are for the machine {patch.machine_id!r}: delete the file of one of them"
            )
        patch_ids[patch.machine_id] = patch.patch_id
    return PatchSet(patches[0].image_id, name, patch_ids, not_after)


def sign_patch_set(patch_set: PatchSet, key: SecretKey) -> SignedPatchSet:
    """Return the set with its signature."""
    statement = patch_set.statement()
    comment = f"diskcast patches {patch_set.name}, {len(patch_set.patch_ids)} machines"
    signature = key.sign(statement, trusted_comment=comment).file_text(
        "signature of diskcast machine patches"
    )
    return SignedPatchSet(SignedStatement(statement, signature), patch_set.lines())


def import_signature(patch_set: PatchSet, path: Path, public_key: str | None) -> SignedPatchSet:
    """Return the set with a signature that was made elsewhere, by ``minisign -Sm`` of its statement.

    Raises:
        ConfigurationError: a file can't be read.
        PatchRefusedError: the statement is about other patches.
        TrustError: the key didn't sign it.
    """
    signed, signer = read_signed_statement(path, public_key)
    if not verify(signed.statement, parse_signature_untrusted(signed.signature), signer):
        raise UnsignedImageError(
            f"the signature of {path} isn't one of the key {signer.id_text}: sign the statement again"
        )
    found = parse_patch_set_untrusted(signed.statement, patch_set.lines())
    if found.image_id != patch_set.image_id:
        raise ConfigurationError(f"{path} is about the patches of another image: export the statement again")
    return SignedPatchSet(signed, patch_set.lines())
