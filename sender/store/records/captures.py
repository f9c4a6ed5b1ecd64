"""Captures: images made of machines' disks over the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

from sender.store.records.api_schema import OpenStrEnum


class CaptureState(OpenStrEnum):
    """The state of a capture."""

    PLANNED = "planned"
    """It waits for the agent of its machine."""
    UPLOADING = "uploading"
    """The agent reads its disk and sends the blocks."""
    PROVING = "proving"
    """The agent reads the disk again, and the daemon compares."""
    COMPLETE = "complete"
    """The image is in the library."""
    FAILED = "failed"
    """``error`` has the cause and the fix."""
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Return whether nothing follows."""
        return not CAPTURE_TRANSITIONS[self]


CAPTURE_TRANSITIONS: Mapping[CaptureState, frozenset[CaptureState]] = MappingProxyType(
    {
        CaptureState.PLANNED: frozenset(
            {CaptureState.UPLOADING, CaptureState.FAILED, CaptureState.CANCELLED}
        ),
        CaptureState.UPLOADING: frozenset(
            {CaptureState.PROVING, CaptureState.COMPLETE, CaptureState.FAILED, CaptureState.CANCELLED}
        ),
        # A daemon that restarts checks its partial file, and may need some blocks again.
        CaptureState.PROVING: frozenset(
            {CaptureState.UPLOADING, CaptureState.COMPLETE, CaptureState.FAILED, CaptureState.CANCELLED}
        ),
        CaptureState.COMPLETE: frozenset(),
        CaptureState.FAILED: frozenset(),
        CaptureState.CANCELLED: frozenset(),
    }
)
"""The states that may follow each state."""


@dataclasses.dataclass(frozen=True, slots=True)
class CapturePlan:
    """An operator's request for a capture.

    Attributes:
        name: name of the image.
        source: path of the disk on the machine, or ``auto``.
        every_byte: keep free space too, and record the SHA-256 of the whole disk.
        base_image_id: image whose blocks aren't uploaded again; empty for none.
    """

    machine_id: str
    name: str
    source: str
    block_bytes: int
    level: int
    every_byte: bool
    base_image_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Capture:
    """A capture.

    Attributes:
        machine_name: name of the machine at the time of the request.
        owner: name of the daemon that keeps the image.
        location: file of the image.
        disk: path of the disk on the machine; empty before the agent starts.
        raw_bytes: size of the disk; 0 before the agent starts.
        done_bytes: bytes of the disk that are in the image, or proven.
        uploaded_bytes: stored bytes that the network has carried.
        kept_bytes: stored bytes that were copied from the base image.
        rate_bytes_per_s: bytes of the disk per second, recently; 0 while nothing happens.
        eta_s: seconds until the end of the present state; None if unknown.
        image_id: id of the image; empty before it is complete.
    """

    capture_id: str
    plan: CapturePlan
    machine_name: str
    owner: str
    location: str
    state: CaptureState
    created_at: datetime
    created_by: str
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: str = ""
    disk: str = ""
    disk_model: str = ""
    disk_serial: str = ""
    raw_bytes: int = 0
    done_bytes: int = 0
    uploaded_bytes: int = 0
    kept_bytes: int = 0
    rate_bytes_per_s: int = 0
    eta_s: float | None = None
    image_id: str = ""
