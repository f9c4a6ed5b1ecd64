"""Images of the library."""

from __future__ import annotations

import dataclasses
import enum
from datetime import datetime


class ImageState(enum.StrEnum):
    """Availability of an image."""

    AVAILABLE = "available"
    """Checked, on the daemon's disk."""
    REMOTE = "remote"
    """Fetched when a cast needs it."""
    FETCHING = "fetching"
    DAMAGED = "damaged"
    """``problem`` has the cause and the fix."""
    GONE = "gone"
    """Named by history only."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image of the library.

    Attributes:
        image_id: digest of its manifest, 64 hexadecimal digits; for a remote image that was never read, ``url:`` and a
            digest of its URL; for a damaged file, ``file:`` and a digest of its path.
        name: name from the packing.
        location: path or URL, without credentials.
        source: ``folder``, ``remote`` or ``""`` for a gone image.
        stored_bytes: length of the file.
        packed_at: modification time of the file, the best approximation.
        fetched_bytes: progress of a fetch.
        in_use_by: ids of the casts that use it now.
        signer: id of the key that signed it; empty for an unsigned image. Only the keys that a machine trusts decide
            whether it accepts the image.
        signed_name: name in the signed statement.
        version: signed version, a decimal number of up to 64 bits; empty for an unsigned image.
    """

    image_id: str
    name: str
    location: str
    source: str
    state: ImageState
    raw_bytes: int
    stored_bytes: int
    block_bytes: int
    fetched_bytes: int
    problem: str
    packed_at: datetime | None
    first_seen_at: datetime
    in_use_by: tuple[str, ...] = ()
    signer: str = ""
    signed_name: str = ""
    version: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class UploadedSignature:
    """A signature that an operator uploaded.

    Attributes:
        signed: statement and signature, as an image's header stores them.
        public_key: the signer's public key in one line.
    """

    image_id: str
    signed: bytes
    public_key: str
    at: datetime
