"""The request body of a token."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from sender.api.request_models.field_types import Name, RoomId, Time
from sender.api.request_models.request_body import RequestBody
from sender.store.records.access import Role


class TokenInput(RequestBody):
    """A new token."""

    name: Name = Field(examples=["grafana"])
    role: Annotated[Role, Field(strict=False)]
    expires_at: Time | None = Field(
        default=None,
        description="Time when the token expires; null for never, and for the role enrol for a lifetime of 30 days.",
    )
    room_id: RoomId | None = Field(
        default=None,
        description="With the roles enrol and boot: room whose machines it enrols or boots; null for all rooms.",
    )

    @model_validator(mode="after")
    def _check_room(self) -> TokenInput:
        if self.room_id is not None and self.role not in (Role.ENROL, Role.BOOT):
            raise ValueError("room_id: only tokens of the roles enrol and boot are for a room")
        return self
