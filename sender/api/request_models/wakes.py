"""The request body of Wake-on-LAN."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from protocol.constants import RECEIVER_COUNT_MAX
from sender.api.request_models.field_types import MachineId, RoomId
from sender.api.request_models.request_body import RequestBody


class WakeInput(RequestBody):
    """Machines to wake: a room, machines of a room, or machines of any rooms."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["room_id"], "properties": {"room_id": {"type": "string"}}},
                {"required": ["machine_ids"], "properties": {"machine_ids": {"minItems": 1}}},
            ]
        }
    )

    room_id: RoomId | None = Field(
        default=None, examples=["classroom-101"], description="Room to wake; its waves are used."
    )
    machine_ids: list[MachineId] = Field(
        default=[], max_length=RECEIVER_COUNT_MAX, description="Machines to wake; empty for the whole room."
    )

    @model_validator(mode="after")
    def _check_machines(self) -> Self:
        if self.room_id is None and not self.machine_ids:
            raise ValueError("name a room_id, or machines with machine_ids")
        return self
