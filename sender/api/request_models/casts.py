"""Request bodies for casts."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from protocol.constants import (
    RATE_BYTES_PER_S_MAX,
    RATE_BYTES_PER_S_MIN,
    RECEIVER_COUNT_MAX,
    SLOW_BELOW_DEFAULT,
    SLOW_BELOW_MAX,
    SLOW_BELOW_MIN,
    SLOW_FOR_S_DEFAULT,
    SLOW_FOR_S_MAX,
    SLOW_FOR_S_MIN,
)
from sender.api.request_models.field_types import (
    ImageReference,
    MachineId,
    RoomId,
    ShortText,
    Text,
    Time,
    whole_number,
)
from sender.api.request_models.request_body import RequestBody
from sender.store.records.casts import StartMode

WAIT_S_MAX: Final = 7 * 86_400.0

Seconds = Annotated[float, Field(ge=0, le=WAIT_S_MAX, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=RATE_BYTES_PER_S_MIN, le=RATE_BYTES_PER_S_MAX, allow_inf_nan=False)]
MachineCount = Annotated[int, Field(strict=False, ge=1, le=RECEIVER_COUNT_MAX), BeforeValidator(whole_number)]


class PreflightInput(RequestBody):
    """An image and the machines that should get it."""

    image: ImageReference = Field(
        examples=["win11-lab"], description="Image, as in the plan of a cast: name, version, or id."
    )
    room_id: RoomId | None = Field(
        default=None, description="Room to check; null for the machines of machine_ids."
    )
    machine_ids: list[MachineId] = Field(
        default=[], max_length=RECEIVER_COUNT_MAX, description="Machines to check; empty for the whole room."
    )


class PlanInput(RequestBody):
    """The plan of a cast: image, machines, start, rate and stragglers."""

    image: ImageReference = Field(
        examples=["win11-lab"],
        description="Name of the image, which means its newest version; a version such as lab@3 or lab@latest; or its "
        "id, or a unique prefix of the id of 8 or more digits. A schedule with NAME@latest casts the newest version "
        "at the time.",
    )
    room_id: RoomId | None = Field(
        default=None, description="Room to image; null for the machines of machine_ids."
    )
    machine_ids: list[MachineId] = Field(
        default=[], max_length=RECEIVER_COUNT_MAX, description="Machines to image; empty for the whole room."
    )
    name: ShortText = Field(default="", description="Name of the cast, for people.")
    start: Annotated[StartMode, Field(strict=False)] = Field(
        default=StartMode.JOINED,
        description="joined: start when wait_for machines have joined. manual: start on request.",
    )
    wait_for: MachineCount | None = Field(
        default=None, description="Number of machines that must join before the start; null for all."
    )
    max_wait_s: Seconds | None = Field(
        default=300.0,
        description="With start=joined: start after this time with the machines joined so far; null for never.",
    )
    rate_bytes_per_s: Rate | None = Field(default=None, description="Fixed rate; null for automatic.")
    rate_max_bytes_per_s: Rate | None = Field(default=None, description="Maximum of the automatic rate.")
    share: bool = Field(default=False, description="Share the link with other traffic, as TCP does.")
    slow: Literal["wait", "demote", "drop"] = Field(
        default="demote",
        description="How to handle stragglers: wait for them, finish them last (demote) or drop them.",
    )
    slow_below: float = Field(
        default=SLOW_BELOW_DEFAULT,
        ge=SLOW_BELOW_MIN,
        le=SLOW_BELOW_MAX,
        allow_inf_nan=False,
        description="A machine below this share of the group's rate is a straggler.",
    )
    slow_for_s: float = Field(
        default=SLOW_FOR_S_DEFAULT,
        ge=SLOW_FOR_S_MIN,
        le=SLOW_FOR_S_MAX,
        allow_inf_nan=False,
        description="Time a machine must be slow before slow applies to it.",
    )
    encrypt: bool = Field(
        default=False,
        description="Encrypt the data on the network; always true if the daemon's casts.encrypt is.",
    )
    wake: bool = Field(
        default=False,
        description="Wake the machines by Wake-on-LAN when they are to gather; max_wait_s counts from the last wave.",
    )
    plain: bool = Field(
        default=False,
        description="Cast the image as it is, without the machine patches that templates of rooms declare.",
    )


class CastInput(PlanInput):
    """A new cast."""

    start_at: Time | None = Field(
        default=None, description="Time to start; the cast stays planned until then."
    )


class CancelInput(RequestBody):
    """The reason for cancelling a cast."""

    reason: Text = ""
