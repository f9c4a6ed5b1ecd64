"""The files of a boot service: a table of names, so that no request is ever a path.

TFTP and HTTP serve the same names. Everything but the files of the medium is made at the request: the scripts of iPXE
and GRUB depend on the machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from sender.netboot.medium import KERNEL, BootMedium, Loader
from sender.netboot.serve.boot_desk import BootDesk
from sender.netboot.serve.boot_files import ServiceAddress
from sender.netboot.serve.boot_query import BootQuery, parse_grub_file_untrusted
from sender.netboot.serve.boot_scripts import (
    GRUB_SCRIPT,
    LiveBoot,
    grub_disk_script,
    grub_live_script,
    grub_menu_file,
    grub_start_script,
    ipxe_disk_script,
    ipxe_live_script,
)
from sender.netboot.serve.machine_sightings import MachineSightings
from sender.store.records.boots import BootFirmware

_GRUB_PLATFORMS: Final = frozenset({"grub", "x86_64-efi", "arm64-efi"})


@dataclasses.dataclass(frozen=True, slots=True)
class MediumFiles:
    """The files of a medium by the names under which machines load them."""

    paths: Mapping[str, Path]

    @classmethod
    def of(cls, medium: BootMedium) -> MediumFiles:
        """Return the kernel, the initrds and the loaders that ``medium`` has."""
        names = {KERNEL: KERNEL, **{name: name for name in medium.initrds}}
        served = (loader for loader in Loader if loader is not Loader.GRUB_DISK and loader in medium)
        names |= {PurePosixPath(loader).name: loader for loader in served}
        return cls(MappingProxyType({name: medium.path(path) for name, path in names.items()}))


def normalised_name(text: str) -> str:
    """Return a requested name without leading and doubled slashes; DOS-minded firmware writes backslashes."""
    return "/".join(part for part in text.replace("\\", "/").split("/") if part)


class ServedNames:
    """The files and scripts of one network's boot service."""

    def __init__(
        self, service: ServiceAddress, files: MediumFiles, desk: BootDesk, sightings: MachineSightings
    ) -> None:
        """Serve ``files``, and scripts as ``desk`` decides, at the address ``service``."""
        self.service = service
        self._files = files
        self._desk = desk
        self._sightings = sightings

    def file(self, name: str) -> Path | None:
        """Return the path of a file of the medium, None for any other name.

        Shim and GRUB look for their files in the folder that they came from, whatever they think it is: only the last
        part of the name counts, and only if it is in the table.
        """
        return self._files.paths.get(name.rpartition("/")[2])

    async def grub_script(self, name: str, peer: IPv4Address, *, by_http: bool) -> str | None:
        """Return GRUB's script ``name`` for the machine at ``peer``; None for another name."""
        parts = name.split("/")
        if parts[-1] == GRUB_SCRIPT and _GRUB_PLATFORMS.issuperset(parts[:-1]):
            return grub_start_script(self.service, by_http=by_http)
        query = parse_grub_file_untrusted(name)
        if query is None:
            return None
        boot = await self._desk.decide(query, peer, self.service, BootFirmware.SECURE)
        if isinstance(boot, LiveBoot):
            return grub_live_script(boot, by_http=by_http)
        return grub_disk_script(boot, grub_menu_file(self.service, query, by_http=by_http))

    async def ipxe_script(self, query: BootQuery, peer: IPv4Address) -> str:
        """Return iPXE's script for the machine at ``peer``."""
        firmware = self._sightings.firmware(query.mac, uefi=query.uefi)
        boot = await self._desk.decide(query, peer, self.service, firmware)
        return ipxe_live_script(boot) if isinstance(boot, LiveBoot) else ipxe_disk_script(boot, self.service)
