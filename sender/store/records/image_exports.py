"""Exports of images to formats of other programs."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from sender.store.records.api_schema import OpenStrEnum


class ExportState(OpenStrEnum):
    """State of an export."""

    WAITING = "waiting"
    """Another export is being made."""
    CONVERTING = "converting"
    DONE = "done"
    """The file can be downloaded until ``expires_at``."""
    FAILED = "failed"
    """``problem`` has the reason; there is no file."""

    @property
    def ended(self) -> bool:
        """Return whether nothing follows."""
        return self in (ExportState.DONE, ExportState.FAILED)


@dataclasses.dataclass(frozen=True, slots=True)
class ImageExport:
    """An export.

    Attributes:
        image_id: id of the image.
        image_name: its name and version.
        format: format of the file.
        file_name: name for the downloaded file.
        progress: share that is converted, 0..1.
        rate_bytes_per_s: bytes of the disk per second, recently; 0 while nothing happens.
        eta_s: seconds until the file is complete; None if unknown.
        file_bytes: size of the complete file; 0 before.
        file_sha256: SHA-256 of the complete file; empty before.
        problem: reason of the failure, and the fix.
        exit_code: kind of the failure, as the exit code of `diskcast export`; 0 without one.
        created_by: name of the token.
        expires_at: time at which the file is removed; None before it is complete.
    """

    export_id: str
    image_id: str
    image_name: str
    format: str
    file_name: str
    state: ExportState
    progress: float
    rate_bytes_per_s: int
    eta_s: float | None
    file_bytes: int
    problem: str
    exit_code: int
    created_by: str
    created_at: datetime
    expires_at: datetime | None = None
    file_sha256: str = ""
