"""Signatures of the library's images that operators uploaded, beside those in the images' files.

A daemon has no signing key, and may not be allowed to write to its image folders. An operator therefore signs an
image's statement on a machine of their own; the store keeps the signature for all daemons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

import structlog

from protocol.errors import ConfigurationError, DiskcastError, TrustError
from protocol.trust.minisign import PublicKey
from protocol.trust.statement import SignedStatement
from sender.imaging.image_signature import ImageSignature, SignatureState, check_statement
from sender.refusals import conflict, invalid
from sender.store.records.images import UploadedSignature

if TYPE_CHECKING:
    from sender.store.repositories.audit import AuditNote
    from sender.store.store import Store

REFRESH_S: Final = 30.0
"""Interval at which signatures that were uploaded through another daemon are read; a cast reads them when it starts."""

_log = structlog.get_logger(__name__)


class ImageSignatures:
    """The uploaded signatures, checked. Not thread-safe: use it on the event loop."""

    def __init__(self, store: Store | None, on_change: Callable[[], None]) -> None:
        """Use ``store``; None: keep no signatures."""
        self._store = store
        self._on_change = on_change
        self._found: dict[str, ImageSignature] = {}
        self._read_until: datetime | None = None

    async def run(self) -> None:
        """Read the signatures that other daemons took, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)

    async def refresh(self) -> None:
        """Read new signatures; keep the known ones while the database is unavailable."""
        if self._store is None:
            return
        try:
            new = await self._store.run(self._store.images.signatures, self._read_until)
        except DiskcastError:  # the store reports its own problem
            return
        before = dict(self._found)
        for uploaded in new:
            self._add(uploaded)
        if self._found != before:
            self._on_change()

    def best(self, image_id: str, own: ImageSignature) -> ImageSignature:
        """Return the signature to use: the uploaded one if its version is higher, or if the file has none."""
        uploaded = self._found.get(image_id)
        if uploaded is None or uploaded.statement is None:
            return own
        if own.statement is not None and own.statement.version >= uploaded.statement.version:
            return own
        return uploaded

    async def upload(
        self, image_id: str, own: ImageSignature, signed: SignedStatement, public_key: str, audit: AuditNote
    ) -> ImageSignature:
        """Check and keep an operator's signature.

        Args:
            image_id: the image.
            own: the signature in its file.
            signed: statement and signature.
            public_key: the signer's key in one line.
            audit: the requester.

        Raises:
            RequestRefusedError: the key didn't sign the statement, it is about another image, or its version isn't
                higher than the present one.
            DatabaseError: it can't be recorded.
        """
        signature = _checked(image_id, signed, public_key)
        await self.refresh()
        present = self.best(image_id, own).statement
        assert signature.statement is not None
        if present is not None and signature.statement.version <= present.version:
            raise conflict(
                f"the image is signed as version {present.version} already: sign it with a higher --image-version than "
                f"{signature.statement.version}"
            )
        if self._store is not None:
            put = self._store.images.put_signature
            self._add(await self._store.run(put, image_id, signed.to_bytes(), public_key, audit=audit))
        self._on_change()
        return signature

    def _add(self, uploaded: UploadedSignature) -> None:
        self._read_until = max(self._read_until or uploaded.at, uploaded.at)
        try:
            signed = SignedStatement.from_bytes_untrusted(uploaded.signed)
            self._found[uploaded.image_id] = _signature(uploaded.image_id, signed, uploaded.public_key)
        except (TrustError, ConfigurationError, ValueError) as error:
            _log.warning("uploaded_signature_invalid", image_id=uploaded.image_id, reason=str(error))


def _checked(image_id: str, signed: SignedStatement, public_key: str) -> ImageSignature:
    try:
        return _signature(image_id, signed, public_key)
    except (TrustError, ConfigurationError) as error:
        raise invalid(str(error)) from error
    except ValueError as error:  # not the id of an image: a damaged file, or a URL that was never read
        raise conflict(f"image {image_id} hasn't been read: fetch or replace it first") from error


def _signature(image_id: str, signed: SignedStatement, public_key: str) -> ImageSignature:
    signer = PublicKey.parse(public_key)
    statement = check_statement(signed, signer, bytes.fromhex(image_id))
    return ImageSignature(SignatureState.SIGNED, signed, statement, signer)
