"""The identity of a booting machine, as its boot loader puts it into a request for its boot script. Pure."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from typing import Final

from protocol.errors import ProtocolError

GRUB_DECISION_FOLDER: Final = "boot"
GRUB_DECISION: Final = "run.cfg"
GRUB_MENU: Final = "menu.cfg"
QUERY_CHARS_MAX: Final = 1024
_MAC: Final = re.compile(r"[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}", re.IGNORECASE)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SERIAL_CHARS_MAX: Final = 64


@dataclasses.dataclass(frozen=True, slots=True)
class BootQuery:
    """A machine that requests its boot script.

    Attributes:
        mac: hardware address, lower case with colons; empty if the boot loader didn't pass it on.
        uuid: SMBIOS UUID in lower case; empty if unknown.
        serial: SMBIOS serial number; empty if unknown.
        uefi: the firmware is UEFI.
        arm64: the processor is an ARM64.
        menu: a person at the console pressed the menu's key.
    """

    mac: str
    uuid: str
    serial: str
    uefi: bool
    arm64: bool
    menu: bool


def parse_ipxe_query_untrusted(query: str) -> BootQuery | None:
    """Parse the query of ``boot.ipxe``; return None for the first request, which has none.

    Raises:
        ProtocolError: there is no valid MAC address in it.
    """
    if not query:
        return None
    if len(query) > QUERY_CHARS_MAX:
        raise ProtocolError("the query is too long")
    try:
        values = dict(urllib.parse.parse_qsl(query, max_num_fields=16))
    except ValueError as error:
        raise ProtocolError(f"the query isn't valid: {error}") from error
    mac = _mac(values.get("mac", ""))
    if not mac:
        raise ProtocolError("the query has no valid mac=52:54:00:12:34:56")
    return BootQuery(
        mac,
        _uuid(values.get("uuid", "")),
        _serial(values.get("serial", "")),
        uefi=values.get("platform") == "efi",
        arm64=values.get("arch") == "arm64",
        menu=values.get("menu") == "1",
    )


def parse_grub_file_untrusted(name: str) -> BootQuery | None:
    """Parse the file name of GRUB's second script, ``boot/MAC/UUID/run.cfg``; return None for another file.

    GRUB may leave the MAC address out, and the caller finds it in the ARP table.
    """
    if len(name) > QUERY_CHARS_MAX:
        return None
    parts = name.split("/")
    if len(parts) < 3 or parts[0] != GRUB_DECISION_FOLDER or parts[-1] not in (GRUB_DECISION, GRUB_MENU):
        return None
    values = parts[1:-1]
    return BootQuery(
        next((mac for mac in map(_mac, values) if mac), ""),
        next((uuid for uuid in map(_uuid, values) if uuid), ""),
        "",
        uefi=True,
        arm64=False,
        menu=parts[-1] == GRUB_MENU,
    )


def _mac(text: str) -> str:
    return text.lower().replace("-", ":") if _MAC.fullmatch(text) else ""


def _uuid(text: str) -> str:
    return text.lower() if _UUID.fullmatch(text) else ""


def _serial(text: str) -> str:
    text = text.strip()
    return text if text.isprintable() and len(text) <= _SERIAL_CHARS_MAX else ""
