"""The request body of a machine that boots over the network."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from sender.api.request_models.field_types import Mac, RoomId, ShortText
from sender.api.request_models.request_body import RequestBody
from sender.store.records.boots import BootFirmware, BootReport


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
