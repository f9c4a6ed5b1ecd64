"""Request bodies for machines."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from sender.api.request_models.field_types import Mac, Name, RoomId, ShortText, Text
from sender.api.request_models.request_body import PatchBody, RequestBody, omittable

MACS_MAX: Final = 16
"""Network cards of one machine."""


class MachineInput(RequestBody):
    """A new machine, identified by a hardware address, serial number or asset tag."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["macs"], "properties": {"macs": {"minItems": 1}}},
                {"required": ["serial"], "properties": {"serial": {"minLength": 1}}},
                {"required": ["asset_tag"], "properties": {"asset_tag": {"minLength": 1}}},
            ]
        }
    )

    name: Name = Field(examples=["pc-07"])
    room_id: RoomId | None = Field(default=None, examples=["classroom-101"])
    macs: list[Mac] = Field(default=[], max_length=MACS_MAX, examples=[["52:54:00:12:34:56"]])
    serial: ShortText = ""
    asset_tag: ShortText = ""
    position: ShortText = Field(default="", examples=["row 2, seat 5"])
    note: Text = ""

    @model_validator(mode="after")
    def _check_identity(self) -> MachineInput:
        if not (self.macs or self.serial or self.asset_tag):
            raise ValueError("a machine needs an identity: give macs, serial or asset_tag")
        return self


class MachineChange(PatchBody):
    """Changes to a machine."""

    name: Name = omittable(str)
    room_id: RoomId | None = None
    macs: list[Mac] = omittable(list, max_length=MACS_MAX)
    serial: ShortText = omittable(str)
    asset_tag: ShortText = omittable(str)
    position: ShortText = omittable(str)
    note: Text = omittable(str)
    next_boot: Literal["", "live"] = omittable(
        str, description="live: boot the live system at the next boot over the network, once."
    )


class ApprovalInput(RequestBody):
    """The approval of a machine that waits."""

    code: Annotated[str, StringConstraints(min_length=1, max_length=16, pattern="^[0-9A-Za-z]+$")] = Field(
        examples=["7KX2QM"], description="Code that the machine shows."
    )
