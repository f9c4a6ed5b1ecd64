"""Images of the library."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from sender.store.records.image_entries import PACKED, ImageOrigin

LATEST: Final = "latest"
"""``NAME@latest`` is the newest version of a name."""

ID_PREFIX_MIN: Final = 8
"""Digits of an abbreviated image id."""


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
        number: version number within its name, as in ``lab@3``: the order in which images of this name first appeared;
            0 until it has one.
        latest: it is the newest usable version of its name.
        note: an operator's note.
        pinned: pruning keeps it.
        added_by: name of the token that added it; empty for a file that was put into a folder.
        origin: source from which it was made.
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
    number: int = 0
    latest: bool = False
    note: str = ""
    pinned: bool = False
    added_by: str = ""
    origin: ImageOrigin = PACKED


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


def image_reference(image: Image) -> str:
    """Return the name of exactly this image for people and commands, such as ``lab@3``."""
    return f"{image.name}@{image.number}" if image.number else image.name


def latest_of(images: Iterable[Image]) -> Image | None:
    """Return the newest usable version of images of one name; None if there is none."""
    usable = [image for image in images if image.state in _USABLE]
    return max(usable, key=lambda image: (image.number, image.first_seen_at, image.image_id), default=None)


def matching_images(images: Iterable[Image], text: str) -> list[Image]:
    """Return the images to which ``text`` refers: one if it is clear, several if it isn't, or none.

    In this order: an id; a name, which means its newest version; ``NAME@3`` or ``NAME@latest``; the start of an id; the
    name of a file.
    """
    everything = list(images)
    if exact := [image for image in everything if image.image_id == text]:
        return exact
    if named := [image for image in everything if image.name == text]:
        return _newest(named)
    name, at, version = text.rpartition("@")
    versions = [image for image in everything if at and image.name == name]
    if version == LATEST:
        return _newest(versions)
    if numbered := [image for image in versions if str(image.number) == version and image.number]:
        return numbered
    if len(text) >= ID_PREFIX_MIN:
        found = [image for image in everything if image.image_id.startswith(text.lower())]
        if found:
            return found
    found = [image for image in everything if image.location.rpartition("/")[2] == text]
    # A damaged copy beside the good one doesn't make its name ambiguous.
    return [image for image in found if image.state is not ImageState.DAMAGED] or found


_USABLE: Final = (ImageState.AVAILABLE, ImageState.REMOTE, ImageState.FETCHING)


def _newest(named: list[Image]) -> list[Image]:
    newest = latest_of(named)
    if newest is None:
        return named
    # A number is unique, except for 0: an older daemon numbers none.
    return [image for image in named if image.state in _USABLE and image.number == newest.number]
