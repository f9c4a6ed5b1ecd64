"""Request models: strict pydantic models with a limit on every field.

JSON types aren't coerced: ``"5"`` isn't a number. Text must be printable and on one line, since it is shown on
terminals, in metric labels and in spreadsheets.
"""

from __future__ import annotations

import ipaddress
import re
import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

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
from protocol.trust.minisign import SIGNATURE_TEXT_BYTES_MAX
from protocol.trust.statement import STATEMENT_BYTES_MAX
from sender.api.guard.login_codes import CODE_PATTERN
from sender.store.records.access import Role
from sender.store.records.boots import BootFirmware, BootReport
from sender.store.records.casts import StartMode

NAME_CHARACTERS_MAX: Final = 64
TEXT_CHARACTERS_MAX: Final = 1000
MACHINE_ID_CHARACTERS_MAX: Final = 64
URL_CHARACTERS_MAX: Final = 2000
MACS_MAX: Final = 16
"""Network cards of one machine."""
WAVE_PAUSE_S_MAX: Final = 600.0
WAIT_S_MAX: Final = 7 * 86_400.0
_YEARS: Final = range(2, 9999)
"""Times near the calendar's ends overflow when converted to another time zone."""

# Control characters, invisible characters and direction overrides, which could disguise a name.
_UNPRINTABLE: Final = (
    r"\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff"
)
TEXT_PATTERN: Final = f"^[^{_UNPRINTABLE}]*$"
NAME_PATTERN: Final = f"^[^{_UNPRINTABLE}\\s](?:[^{_UNPRINTABLE}]*[^{_UNPRINTABLE}\\s])?$"
ROOM_ID_PATTERN: Final = "^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"
MAC_PATTERN: Final = "^[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}$"
CAST_ID_PATTERN: Final = "^[0-9a-f]{8}$"
IMAGE_ID_PATTERN: Final = "^(?:[a-z]{1,8}:)?[0-9a-f]{8,64}$"
PLAIN_ID_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
URL_PATTERN: Final = r"^(?:https?|s3)://[^\s/]+/[^\s]*$"

Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS_MAX, pattern=NAME_PATTERN)]
ShortText = Annotated[str, StringConstraints(max_length=NAME_CHARACTERS_MAX, pattern=TEXT_PATTERN)]
Text = Annotated[str, StringConstraints(max_length=TEXT_CHARACTERS_MAX, pattern=TEXT_PATTERN)]
RoomId = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=ROOM_ID_PATTERN)]
MachineId = Annotated[
    str, StringConstraints(min_length=1, max_length=MACHINE_ID_CHARACTERS_MAX, pattern=PLAIN_ID_PATTERN)
]
InterfaceName = Annotated[str, StringConstraints(max_length=15, pattern=r"^[A-Za-z0-9_.:@-]*$")]
ImageReference = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=NAME_PATTERN)]
Url = Annotated[str, StringConstraints(min_length=8, max_length=URL_CHARACTERS_MAX, pattern=URL_PATTERN)]


def _mac(text: str) -> str:
    plain = text.lower().replace("-", ":")
    if plain in ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"):
        raise ValueError(f"{text} isn't the address of a machine")
    return plain


Mac = Annotated[str, StringConstraints(pattern=MAC_PATTERN), AfterValidator(_mac)]


def _time_text(value: object) -> object:
    """Accept RFC 3339 text only: pydantic alone would also accept seconds since 1970."""
    if not isinstance(value, str) or not re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", value):
        raise ValueError("expected a time such as 2030-01-31T18:00:00Z")
    return value


def _utc(value: datetime) -> datetime:
    if value.year not in _YEARS:
        raise ValueError("the year is out of range")
    return value.astimezone(UTC)


Time = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_time_text), AfterValidator(_utc)]
Seconds = Annotated[float, Field(ge=0, le=WAIT_S_MAX, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=RATE_BYTES_PER_S_MIN, le=RATE_BYTES_PER_S_MAX, allow_inf_nan=False)]


def _whole(value: object) -> object:
    """Accept 3.0 as 3, since JSON has one type of number, but no text or boolean."""
    if isinstance(value, str | bool):
        raise ValueError("expected a number")
    return value


WaveSize = Annotated[int, Field(strict=False, ge=1, le=RECEIVER_COUNT_MAX), BeforeValidator(_whole)]
WavePause = Annotated[float, Field(ge=0, le=WAVE_PAUSE_S_MAX, allow_inf_nan=False)]
MachineCount = Annotated[int, Field(strict=False, ge=1, le=RECEIVER_COUNT_MAX), BeforeValidator(_whole)]


def _cron(text: str) -> str:
    if len(text.split()) != 5:
        raise ValueError("expected five fields: minute, hour, day of month, month, day of week")
    try:
        next(CronSim(text, datetime(2024, 1, 1, tzinfo=UTC)))
    except (CronSimError, StopIteration) as error:
        raise ValueError(f"{text!r} is invalid or never occurs: {error}") from error
    return text


def _zone(text: str) -> str:
    # Only listed names: ZoneInfo would look for a file of any relative path.
    if text not in zoneinfo.available_timezones():
        raise ValueError(f"{text!r} isn't a time zone: use a name such as Europe/Berlin or UTC")
    return text


Cron = Annotated[
    str, StringConstraints(min_length=9, max_length=120, pattern=r"^[0-9A-Za-z*/,#-]+( +[0-9A-Za-z*/,#-]+){4}$"),
    AfterValidator(_cron),
]  # fmt: skip
Zone = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_zone)]


class RequestBody(BaseModel):
    """The base of request bodies: no unknown fields, no type coercion."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class PatchBody(RequestBody):
    """The base of PATCH bodies: fields that aren't given stay unchanged."""

    def given(self) -> dict[str, Any]:
        """Return the fields that the client sent."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def _given(kind: Callable[[], Any], **more: Any) -> Any:
    """Return a field that may be missing but not null; its default is never used and isn't in the OpenAPI document."""
    return Field(default_factory=kind, **more)


class SessionInput(RequestBody):
    """A token, or a one-time code in its place."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "string"}}} for name in ("token", "code")
            ]
        }
    )

    token: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[!-~]+$")] | None = (
        Field(default=None, examples=["dct_view_…"])
    )
    code: Annotated[str, StringConstraints(pattern=CODE_PATTERN)] | None = Field(
        default=None, examples=["dcl_…"], description="From `POST /session/codes`."
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.token is None) == (self.code is None):
            raise ValueError("send either a token or a code")
        return self


class ImageInput(RequestBody):
    """A remote image."""

    url: Url = Field(
        examples=["https://images.example/win11.dci"], description="URL of the image: http, https or s3."
    )
    name: ShortText = Field(default="", description="Name to use until the image has been read.")


class SignatureInput(RequestBody):
    """A signature that an operator made for an image."""

    statement: Annotated[str, StringConstraints(min_length=1, max_length=STATEMENT_BYTES_MAX)] = Field(
        description="Statement about the image, as it was signed."
    )
    signature: Annotated[str, StringConstraints(min_length=1, max_length=SIGNATURE_TEXT_BYTES_MAX)] = Field(
        description="Content of the .minisig file."
    )
    public_key: Annotated[str, StringConstraints(pattern="^RW[A-Za-z0-9+/]{54}$")] = Field(
        description="The signer's public key in one line."
    )


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

    name: Name = _given(str)
    description: Text = _given(str)
    site: ShortText = _given(str)
    interface: InterfaceName = _given(str)
    enrolment: Literal["", "token", "approve"] = _given(str)
    unknown_machines: Literal["", "off", "ask", "auto"] = _given(str)
    boot_menu: bool = _given(bool)
    wake_wave_size: WaveSize | None = None
    wake_pause_s: WavePause | None = None


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

    name: Name = _given(str)
    room_id: RoomId | None = None
    macs: list[Mac] = _given(list, max_length=MACS_MAX)
    serial: ShortText = _given(str)
    asset_tag: ShortText = _given(str)
    position: ShortText = _given(str)
    note: Text = _given(str)
    next_boot: Literal["", "live"] = _given(
        str, description="live: boot the live system at the next boot over the network, once."
    )


class ApprovalInput(RequestBody):
    """The approval of a machine that waits."""

    code: Annotated[str, StringConstraints(min_length=1, max_length=16, pattern="^[0-9A-Za-z]+$")] = Field(
        examples=["7KX2QM"], description="Code that the machine shows."
    )


def _address(text: str) -> str:
    if text:
        try:
            ipaddress.ip_address(text)
        except ValueError as error:
            raise ValueError(f"{text!r} isn't an IP address") from error
    return text


class BootInput(RequestBody):
    """A machine that boots over the network."""

    mac: Mac = Field(
        examples=["52:54:00:12:34:56"], description="Hardware address of the network card that boots."
    )
    uuid: ShortText = Field(
        default="",
        examples=["3f2504e0-4f89-11d3-9a0c-0305e82c3301"],
        description="UUID of the firmware (SMBIOS); empty if unknown.",
    )
    serial: ShortText = Field(default="", description="Serial number of the firmware; empty if unknown.")
    address: Annotated[str, StringConstraints(max_length=45), AfterValidator(_address)] = Field(
        default="", examples=["10.0.0.7"], description="Network address of the machine; empty if unknown."
    )
    firmware: Annotated[BootFirmware, Field(strict=False)] = Field(
        default=BootFirmware.UNKNOWN, description="Firmware or boot chain; empty if unknown."
    )
    architecture: Annotated[str, StringConstraints(max_length=16, pattern="^[a-z0-9_]*$")] = Field(
        default="", examples=["x86_64"], description="Architecture of the processor; empty if unknown."
    )
    room_id: RoomId | None = Field(
        default=None, description="Room of the boot service, for unknown machines; null for no room."
    )
    menu: bool = Field(default=False, description="A person at the console asks for the menu.")

    def report(self) -> BootReport:
        """Return the record."""
        return BootReport(**{name: getattr(self, name) for name in BootReport.__dataclass_fields__})


class PlanInput(RequestBody):
    """The plan of a cast: image, machines, start, rate and stragglers."""

    image: ImageReference = Field(
        examples=["win11-lab"],
        description="Name or id of the image, or a unique prefix of the id of 8 or more digits.",
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


class CastInput(PlanInput):
    """A new cast."""

    start_at: Time | None = Field(
        default=None, description="Time to start; the cast stays planned until then."
    )


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


class CancelInput(RequestBody):
    """The reason for cancelling a cast."""

    reason: Text = ""


class ScheduleInput(RequestBody):
    """A new schedule."""

    name: Name = Field(examples=["nightly refresh"])
    cron: Cron = Field(
        examples=["0 3 * * 1-5"], description="Five fields: minute, hour, day of month, month, day of week."
    )
    time_zone: Zone = Field(default="UTC", examples=["Europe/Berlin"])
    plan: PlanInput
    enabled: bool = True


class ScheduleChange(PatchBody):
    """Changes to a schedule."""

    name: Name = _given(str)
    cron: Cron = _given(str)
    time_zone: Zone = _given(str)
    plan: PlanInput = _given(dict)
    enabled: bool = _given(bool)


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
