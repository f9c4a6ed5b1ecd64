"""Request bodies for rooms."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, StringConstraints

from protocol.constants import RECEIVER_COUNT_MAX
from sender.api.request_models.field_types import Name, RoomId, ShortText, Text, whole_number
from sender.api.request_models.request_body import PatchBody, RequestBody, omittable

WAVE_PAUSE_S_MAX: Final = 600.0

InterfaceName = Annotated[str, StringConstraints(max_length=15, pattern=r"^[A-Za-z0-9_.:@-]*$")]
WaveSize = Annotated[int, Field(strict=False, ge=1, le=RECEIVER_COUNT_MAX), BeforeValidator(whole_number)]
WavePause = Annotated[float, Field(ge=0, le=WAVE_PAUSE_S_MAX, allow_inf_nan=False)]


class RoomInput(RequestBody):
    """A new room."""

    name: Name = Field(examples=["Classroom 101"])
    room_id: RoomId | None = Field(
        default=None, examples=["classroom-101"], description="Derived from the name by default."
    )
    description: Text = ""
    site: ShortText = Field(
        default="", description="Site whose daemons cast for the room; empty for any daemon."
    )
    interface: InterfaceName = Field(
        default="",
        examples=["eth1"],
        description="Network interface of the daemon; empty for its default.",
    )
    enrolment: Literal["", "token", "approve"] = Field(
        default="", description="Rule for machines that enrol; empty for the daemon's."
    )
    unknown_machines: Literal["", "off", "ask", "auto"] = Field(
        default="",
        description="Rule for unknown machines that boot over the network; empty for the daemon's.",
    )
    boot_menu: bool = Field(
        default=True, description="Offer the menu of the live system before a machine boots from its disk."
    )
    wake_wave_size: WaveSize | None = Field(
        default=None, description="Machines that are woken at the same time; null for the daemon's number."
    )
    wake_pause_s: WavePause | None = Field(
        default=None,
        description="Seconds from one wave of woken machines to the next; null for the daemon's.",
    )


class RoomChange(PatchBody):
    """Changes to a room."""

    name: Name = omittable(str)
    description: Text = omittable(str)
    site: ShortText = omittable(str)
    interface: InterfaceName = omittable(str)
    enrolment: Literal["", "token", "approve"] = omittable(str)
    unknown_machines: Literal["", "off", "ask", "auto"] = omittable(str)
    boot_menu: bool = omittable(bool)
    wake_wave_size: WaveSize | None = None
    wake_pause_s: WavePause | None = None
