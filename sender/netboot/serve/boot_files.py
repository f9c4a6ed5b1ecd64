"""The boot loader of each kind of firmware, and its name for DHCP. Pure."""

from __future__ import annotations

import dataclasses
import enum
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Final

from sender.netboot.medium import Loader
from sender.netboot.serve.dhcp_codec import ClientArchitecture, DhcpMessage
from sender.store.records.boots import BootFirmware

IPXE_SCRIPT: Final = "boot.ipxe"
HTTP_PORT_DEFAULT: Final = 8069
TFTP_PORT: Final = 69


class NetworkClient(enum.Enum):
    """Kind of program that asks DHCP for a boot file."""

    PXE = "PXEClient"
    HTTP = "HTTPClient"
    IPXE = "iPXE"


@dataclasses.dataclass(frozen=True, slots=True)
class BootFile:
    """A boot file for a DHCP client.

    Attributes:
        name: file name for TFTP, or URL.
        client: kind of client that it is for.
        firmware: the client's firmware.
    """

    name: str
    client: NetworkClient
    firmware: BootFirmware


@dataclasses.dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Address of a boot service on one network.

    Attributes:
        address: by which the machines reach it.
        http_port: port of its files and scripts.
    """

    address: IPv4Address
    http_port: int = HTTP_PORT_DEFAULT

    @property
    def http_url(self) -> str:
        """Return the URL of the HTTP server, without a slash at the end."""
        port = "" if self.http_port == 80 else f":{self.http_port}"
        return f"http://{self.address}{port}"


_LOADERS: Final = {
    ClientArchitecture.BIOS: Loader.BIOS,
    ClientArchitecture.UEFI_X64_EBC: Loader.UEFI,
    ClientArchitecture.UEFI_X64: Loader.UEFI,
    ClientArchitecture.UEFI_ARM64: Loader.UEFI_ARM64,
    ClientArchitecture.UEFI_X64_HTTP: Loader.UEFI,
    ClientArchitecture.UEFI_ARM64_HTTP: Loader.UEFI_ARM64,
}
_HTTP_ARCHITECTURES: Final = {ClientArchitecture.UEFI_X64_HTTP, ClientArchitecture.UEFI_ARM64_HTTP}
ARM64_ARCHITECTURES: Final = frozenset({ClientArchitecture.UEFI_ARM64, ClientArchitecture.UEFI_ARM64_HTTP})


class UnsupportedClientError(Exception):
    """A machine that this service has no boot file for; the message is the cause and the fix."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootFileTable:
    """The boot files that a service has.

    Attributes:
        loaders: loaders of the medium.
        secure_boot: give UEFI machines the signed shim and GRUB instead of iPXE.
    """

    loaders: frozenset[Loader]
    secure_boot: bool = False

    def choose(self, request: DhcpMessage, service: ServiceAddress) -> BootFile | None:
        """Return the boot file for a DHCP client; None for a client that doesn't boot.

        Raises:
            UnsupportedClientError: it boots, but there is no loader for it.
        """
        if request.is_ipxe:
            firmware = BootFirmware.BIOS if request.architecture in (None, 0) else BootFirmware.UEFI
            return BootFile(f"{service.http_url}/{IPXE_SCRIPT}", NetworkClient.IPXE, firmware)
        if request.vendor_class.startswith(b"PXEClient"):
            client = NetworkClient.PXE
        elif request.vendor_class.startswith(b"HTTPClient"):
            client = NetworkClient.HTTP
        else:
            return None
        loader = self._loader(request.architecture or ClientArchitecture.BIOS)
        name = PurePosixPath(loader).name
        if client is NetworkClient.HTTP:
            return BootFile(f"{service.http_url}/{name}", client, BootFirmware.UEFI_HTTP)
        if loader is Loader.BIOS:
            return BootFile(name, client, BootFirmware.BIOS)
        return BootFile(name, client, BootFirmware.SECURE if loader is Loader.SHIM else BootFirmware.UEFI)

    def _loader(self, architecture: int) -> Loader:
        if architecture not in _LOADERS:
            raise UnsupportedClientError(
                f"the machine asks for a loader of architecture {architecture}, for which there is none: only x86-64 "
                "by BIOS or UEFI, and ARM64 by UEFI, are supported"
            )
        loader = _LOADERS[ClientArchitecture(architecture)]
        if self.secure_boot and loader is Loader.UEFI:
            loader = Loader.SHIM
        if loader not in self.loaders:
            raise UnsupportedClientError(
                f"the boot medium has no {loader}: install the package with it and run diskcast netboot build again"
            )
        return loader
