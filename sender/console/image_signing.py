"""Signing an image of a daemon's library on the operator's machine."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocol.errors import TrustError
from protocol.trust.minisign import PublicKey
from protocol.trust.statement import ImageStatement, SignedStatement
from sender.console.lookup import path
from sender.identity.signing_keys import AskPassphrase, ensure_signing_key
from sender.imaging.image_signature import check_statement
from sender.imaging.statement_fields import StatementFields, sign_statement
from sender.imaging.statement_transfer import Transfer, export_statement, read_signed_statement
from sender.store.records.images import Image

if TYPE_CHECKING:
    from sender.console.client import Client


def sign_library_image(
    client: Client,
    image: Image,
    fields: StatementFields,
    transfer: Transfer,
    key_path: Path | None,
    ask_passphrase: AskPassphrase,
) -> Image | None:
    """Sign an image and upload the signature; return None if the statement was only exported.

    The statement is built here from the image's id, and never signed as the daemon sends it: a daemon that was taken
    over could otherwise have anything signed.

    Raises:
        ConfigurationError: a field, the key or a file can't be used.
        TrustError: the imported statement isn't about this image, or another key signed it.
        ServerRefusedError: the daemon refuses the signature.
    """
    image_id = bytes.fromhex(image.image_id)
    if transfer.import_path is not None:
        signed, signer = read_signed_statement(transfer.import_path, transfer.public_key)
        check_statement(signed, signer, image_id)
    else:
        present = _present(client.get(path("images", image.image_id, "signature"), dict[str, Any]), image_id)
        statement = fields.statement(image_id, image.name, datetime.datetime.now(datetime.UTC), present)
        if transfer.export_path is not None:
            export_statement(transfer.export_path, statement)
            return None
        key, _ = ensure_signing_key(key_path, ask_passphrase)
        signed, signer = sign_statement(statement, key), key.public
    body = {
        "statement": signed.statement.decode("ascii"),
        "signature": signed.signature,
        "public_key": signer.text,
    }
    return client.order(path("images", image.image_id, "sign"), Image, body)


def _present(view: dict[str, Any], image_id: bytes) -> ImageStatement | None:
    """Return the present statement; None without one, or if its signature doesn't hold."""
    if not view["statement"]:
        return None
    try:
        signed = SignedStatement(view["statement"].encode(), view["signature"])
        return check_statement(signed, PublicKey.parse(view["public_key"]), image_id)
    except TrustError:
        return None
