"""Uploads of images into the library."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from sender.store.records.api_schema import OpenStrEnum


class UploadState(OpenStrEnum):
    """State of an upload."""

    RECEIVING = "receiving"
    WAITING = "waiting"
    """All bytes have arrived; another file is being checked or converted."""
    CHECKING = "checking"
    """Every block of a .dci file is checked."""
    UNPACKING = "unpacking"
    """The disk is read from the image of another program."""
    PACKING = "packing"
    """The disk becomes an image."""
    DONE = "done"
    """The image is in the library."""
    FAILED = "failed"
    """``problem`` has the reason; nothing is kept."""

    @property
    def ended(self) -> bool:
        """Return whether nothing follows."""
        return self in (UploadState.DONE, UploadState.FAILED)


@dataclasses.dataclass(frozen=True, slots=True)
class ImageUpload:
    """An upload.

    Attributes:
        file_name: name of the file on the client's machine.
        total_bytes: size of the file.
        received_bytes: bytes that have arrived; the next part starts there.
        progress: share of the present state's work that is done, 0..1.
        rate_bytes_per_s: bytes per second, recently; 0 while nothing happens.
        eta_s: seconds until the end of the present state; None if unknown.
        image_id: id of the image when it is done; empty before.
        problem: reason of the failure, and the fix.
        exit_code: kind of the failure, as the exit code of the same error in `diskcast pack`; 0 without one.
        created_by: name of the token.
    """

    upload_id: str
    file_name: str
    state: UploadState
    total_bytes: int
    received_bytes: int
    progress: float
    rate_bytes_per_s: int
    eta_s: float | None
    image_id: str
    problem: str
    exit_code: int
    created_by: str
    created_at: datetime
