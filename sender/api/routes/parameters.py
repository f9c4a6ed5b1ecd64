"""Path and query parameters that several endpoints take."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from sender.api.request_models.field_types import (
    CAST_ID_PATTERN,
    IMAGE_ID_PATTERN,
    MACHINE_ID_CHARACTERS_MAX,
    PLAIN_ID_PATTERN,
    ROOM_ID_PATTERN,
)

CaptureIdPath = Annotated[str, Path(pattern=CAST_ID_PATTERN, examples=["3c4d5e6f"])]
CastIdPath = Annotated[str, Path(pattern=CAST_ID_PATTERN, examples=["1a2b3c4d"])]
ImageIdPath = Annotated[str, Path(pattern=IMAGE_ID_PATTERN, max_length=80, examples=["9f86d081884c7d65" * 4])]
OlderImage = Annotated[
    str, Query(pattern=IMAGE_ID_PATTERN, max_length=80, description="Id of the image to compare with.")
]
ExportIdPath = Annotated[str, Path(pattern="^[0-9a-f]{16}$", examples=["0f1e2d3c4b5a6978"])]
RequestCodePath = Annotated[str, Path(pattern="^[0-9A-Z]{1,16}$", examples=["7KX2QM"])]
MachineIdPath = Annotated[str, Path(pattern=PLAIN_ID_PATTERN, max_length=MACHINE_ID_CHARACTERS_MAX)]
RoomIdPath = Annotated[str, Path(pattern=ROOM_ID_PATTERN, max_length=64, examples=["classroom-101"])]
ScheduleIdPath = Annotated[str, Path(pattern=PLAIN_ID_PATTERN, max_length=64)]
TokenIdPath = Annotated[str, Path(pattern=PLAIN_ID_PATTERN, max_length=64)]
UploadIdPath = Annotated[str, Path(pattern="^[0-9a-f]{16}$", examples=["0f1e2d3c4b5a6978"])]
WakeIdPath = Annotated[str, Path(pattern=CAST_ID_PATTERN, examples=["5e6f7a8b"])]
RoomFilter = Annotated[
    str | None, Query(pattern=ROOM_ID_PATTERN, max_length=64, description="Only this room.")
]
