"""Counters of captures, uploads and exports of images; their labels have a fixed set of values."""

from __future__ import annotations

import enum
from typing import Final

from prometheus_client import Counter


class ImageJobKind(enum.StrEnum):
    """A kind of job that makes an image, or a file of one."""

    CAPTURE = "capture"
    UPLOAD = "upload"
    EXPORT = "export"


class BlockRejection(enum.StrEnum):
    """A reason for which a block of a capture is rejected."""

    DAMAGED = "damaged"
    """It arrived without its hashes."""
    CHANGED = "changed"
    """The second read of the disk differs from the first."""


IMAGE_JOB_RECEIVED_BYTES: Final = Counter(
    "diskcast_image_job_received_bytes",
    "Bytes of images that have arrived, by the kind of job: capture (stored blocks) or upload.",
    ("kind",),
    registry=None,
)
IMAGE_JOB_FAILURES: Final = Counter(
    "diskcast_image_job_failures",
    "Captures, uploads and exports that have failed; those that an operator stopped aren't counted.",
    ("kind",),
    registry=None,
)
CAPTURE_REJECTED_BLOCKS: Final = Counter(
    "diskcast_capture_rejected_blocks",
    "Blocks that ended a capture. damaged: the block arrived without its hashes. changed: the second read of the disk "
    "differs from the first.",
    ("reason",),
    registry=None,
)
IMAGE_JOB_COUNTERS: Final = (IMAGE_JOB_RECEIVED_BYTES, IMAGE_JOB_FAILURES, CAPTURE_REJECTED_BLOCKS)

# Each series exists from the start, so that an alert sees the first failure as an increase.
for _kind in ImageJobKind:
    IMAGE_JOB_FAILURES.labels(_kind.value)
for _kind in (ImageJobKind.CAPTURE, ImageJobKind.UPLOAD):
    IMAGE_JOB_RECEIVED_BYTES.labels(_kind.value)
for _reason in BlockRejection:
    CAPTURE_REJECTED_BLOCKS.labels(_reason.value)
