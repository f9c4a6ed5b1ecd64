"""The request body of a capture."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from protocol.constants import BLOCK_BYTES_DEFAULT, BLOCK_BYTES_MAX, BLOCK_BYTES_MIN
from protocol.control.capture_messages import SOURCE_AUTO
from protocol.image.block_codec import LEVEL_DEFAULT, LEVEL_MAX, LEVEL_MIN
from sender.api.request_models.field_types import Name, whole_number
from sender.api.request_models.request_body import RequestBody

BlockBytes = Annotated[
    int, Field(strict=False, ge=BLOCK_BYTES_MIN, le=BLOCK_BYTES_MAX), BeforeValidator(whole_number)
]
Level = Annotated[int, Field(strict=False, ge=LEVEL_MIN, le=LEVEL_MAX), BeforeValidator(whole_number)]


class CaptureInput(RequestBody):
    """A capture of a machine's disk."""

    name: Name = Field(examples=["lab-2026-12"], description="Name of the image.")
    source: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^(?:auto|/[ -~]*)$")] = (
        Field(
            default=SOURCE_AUTO,
            examples=["/dev/nvme0n1"],
            description="Disk of the machine; `auto` for the agent's target, or the machine's only disk.",
        )
    )
    block_bytes: BlockBytes = BLOCK_BYTES_DEFAULT
    level: Level = Field(default=LEVEL_DEFAULT, description="zstd level.")
    every_byte: bool = Field(
        default=False, description="Keep free space too, and record the SHA-256 of the whole disk."
    )
    base_image_id: Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{64})?$")] = Field(
        default="",
        description="Image whose blocks aren't uploaded again; empty for the newest one of the same name.",
    )
