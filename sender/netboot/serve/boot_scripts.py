"""Boot scripts for iPXE and GRUB: the live system, or the machine's own disk. Pure.

Both languages expand ``${name}`` and split words, so that no text from outside goes into a script: names and reasons
are reduced to harmless characters, and boot parameters have no others (:mod:`protocol.control.boot_parameters`).

A machine that boots from the network first must reach its disk, and never this service again in the same boot:

* iPXE on BIOS boots drive 0x80 itself (``sanboot``): much firmware starts over after a boot ROM returns.
* iPXE on UEFI returns an error to the firmware, which continues with the next entry of its boot order. Booting the disk
  itself would need a newer iPXE than Debian 12 has.
* GRUB starts the loader of the disk. Under Secure Boot, shim checks its signature.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Final

from protocol.control.boot_parameters import BootParameters, format_boot_parameters
from sender.netboot.medium import KERNEL
from sender.netboot.serve.boot_files import IPXE_SCRIPT, ServiceAddress
from sender.netboot.serve.boot_query import GRUB_DECISION, GRUB_DECISION_FOLDER, GRUB_MENU, BootQuery

MENU_KEY: Final = "m"
MENU_PROMPT_S: Final = 3
"""Time for a person at the console to press the key; each boot of every machine waits for it."""
KERNEL_ARGUMENTS_DEFAULT: Final = "console=tty0 console=ttyS0,115200n8 quiet"
"""Screen and serial console; a missing serial port does no harm."""

GRUB_SCRIPT: Final = "grub.cfg"

_LOAD_ATTEMPTS_MAX: Final = 3
_RETRY_S: Final = 5
_HARMLESS: Final = re.compile(r"[^A-Za-z0-9 .,:@_/-]")
_SHOWN_CHARS_MAX: Final = 120
_KERNEL_ARGUMENTS: Final = re.compile(r"[A-Za-z0-9 .,:@_/=+-]*")

DISK_LOADERS: Final = (
    "/EFI/Microsoft/Boot/bootmgfw.efi",
    "/EFI/debian/shimx64.efi",
    "/EFI/ubuntu/shimx64.efi",
    "/EFI/fedora/shimx64.efi",
    "/EFI/redhat/shimx64.efi",
    "/EFI/rocky/shimx64.efi",
    "/EFI/almalinux/shimx64.efi",
    "/EFI/opensuse/shim.efi",
    "/EFI/sles/shim.efi",
    "/EFI/systemd/systemd-bootx64.efi",
    "/EFI/BOOT/BOOTX64.EFI",
)
"""Loaders of a disk. The default one is last: with a ``fbx64.efi`` beside it, it changes the firmware's boot order."""


@dataclasses.dataclass(frozen=True, slots=True)
class LiveBoot:
    """A boot of the live system.

    Attributes:
        service: address of the boot service.
        initrds: names of the initrds, in the kernel's order.
        parameters: words for the live system.
        kernel_arguments: further words of the kernel command line.
        name: name of the machine, for its screen.
    """

    service: ServiceAddress
    initrds: Sequence[str]
    parameters: BootParameters
    kernel_arguments: str
    name: str

    @property
    def command_line(self) -> str:
        """Return the kernel's command line."""
        return f"{self.kernel_arguments} {format_boot_parameters(self.parameters)}"


@dataclasses.dataclass(frozen=True, slots=True)
class DiskBoot:
    """A boot of the machine's own disk.

    Attributes:
        reason: reason for people, for its screen.
        menu_offered: a person at the console may choose the menu instead.
    """

    reason: str
    menu_offered: bool = False


def is_kernel_arguments(text: str) -> bool:
    """Return whether ``text`` can be part of a kernel command line in all boot scripts, without quotes."""
    return _KERNEL_ARGUMENTS.fullmatch(text) is not None


def ipxe_start_script(service: ServiceAddress) -> str:
    """Return the script that every iPXE gets first: it passes on the machine's identity."""
    url = _ipxe_url(service)
    return _lines(
        "#!ipxe",
        "set attempt:int32 0",
        ":ask",
        f"chain --replace --autofree {url} ||",
        *_ipxe_retry("ask"),
        f"echo diskcast: the boot service at {service.http_url} does not answer: booting from the disk",
        *_IPXE_DISK,
    )


def ipxe_live_script(boot: LiveBoot) -> str:
    """Return the script that boots the live system."""
    url = boot.service.http_url
    # UEFI kernels look the initrds up by name; BIOS kernels ignore the words.
    names = " ".join(f"initrd={name}" for name in boot.initrds)
    return _lines(
        "#!ipxe",
        f"echo diskcast: starting the live system for {shown(boot.name) or 'this machine'}",
        "set attempt:int32 0",
        ":load",
        "imgfree",
        f"kernel {url}/{KERNEL} {names} {boot.command_line} || goto failed",
        *(f"initrd --name {name} {url}/{name} || goto failed" for name in boot.initrds),
        "boot ||",
        ":failed",
        *_ipxe_retry("load"),
        "echo diskcast: the live system cannot be loaded: booting from the disk",
        *_IPXE_DISK,
    )


def ipxe_disk_script(boot: DiskBoot, service: ServiceAddress) -> str:
    """Return the script that boots from the disk, after a prompt for the menu."""
    prompt = (
        f"prompt --key {MENU_KEY} --timeout {MENU_PROMPT_S * 1000} "
        f"Press {MENU_KEY} to image this machine && goto menu ||"
    )
    menu = f"chain --replace --autofree {_ipxe_url(service)}&menu=1 || goto disk"
    return _lines(
        "#!ipxe",
        f"echo diskcast: {shown(boot.reason)}: booting from the disk",
        *((prompt,) if boot.menu_offered else ()),
        *_IPXE_DISK,
        *((":menu", menu) if boot.menu_offered else ()),
    )


def grub_start_script(service: ServiceAddress, *, by_http: bool) -> str:
    """Return the script that every GRUB gets first: it passes on the machine's identity.

    GRUB puts file names into its requests as they are, so a serial number with other characters is left out.
    """
    folder = f"{_grub_device(service, by_http=by_http)}/{GRUB_DECISION_FOLDER}"
    return _lines(
        "set timeout=0",
        "smbios --type 1 --get-uuid 8 --set uuid",
        "smbios --type 1 --get-string 7 --set serial",
        'set identity="$uuid/-"',
        """if regexp '^[A-Za-z0-9._-]+$' "$serial"; then set identity="$uuid/$serial"; fi""",
        f"configfile {folder}/$net_default_mac/$identity/{GRUB_DECISION}",
        *_grub_disk("the boot service does not answer"),
    )


def grub_live_script(boot: LiveBoot, *, by_http: bool) -> str:
    """Return the script that boots the live system, by HTTP, or by TFTP where GRUB reaches no HTTP server."""
    name = shown(boot.name) or "this machine"
    devices = [_grub_device(boot.service, by_http=True)]
    if not by_http:
        devices.append(_grub_device(boot.service, by_http=False))
    loads = []
    for device in devices:
        files = " ".join(f"{device}/{name}" for name in boot.initrds)
        loads.append(
            f"if linux {device}/{KERNEL} {boot.command_line}; then if initrd {files}; then boot; fi; fi"
        )
    return _lines(
        "set timeout=0",
        f'echo "diskcast: starting the live system for {name}"',
        *loads,
        *_grub_disk("the live system cannot be loaded"),
    )


def grub_disk_script(boot: DiskBoot, menu_file: str) -> str:
    """Return the script that boots from the disk, after a prompt for the menu, whose script is ``menu_file``."""
    if not boot.menu_offered:
        return _lines(*_grub_disk(shown(boot.reason)))
    return _lines(
        f"set timeout={MENU_PROMPT_S}",
        "set default=0",
        'menuentry "Boot from the disk" {',
        *_grub_disk(shown(boot.reason)),
        "}",
        f'menuentry "Image this machine (press {MENU_KEY})" --hotkey={MENU_KEY} {{',
        f"configfile {menu_file}",
        "}",
    )


def grub_menu_file(service: ServiceAddress, query: BootQuery, *, by_http: bool) -> str:
    """Return the file of the script behind the menu's key, for the machine of ``query``."""
    folder = f"{_grub_device(service, by_http=by_http)}/{GRUB_DECISION_FOLDER}"
    return "/".join([folder, *(part or "-" for part in (query.mac, query.uuid, query.serial)), GRUB_MENU])


def shown(text: str) -> str:
    """Return ``text`` with only those characters that mean nothing to iPXE and GRUB."""
    return " ".join(_HARMLESS.sub(" ", text).split())[:_SHOWN_CHARS_MAX]


_IPXE_DISK: Final = (
    ":disk",
    "iseq ${platform} efi && goto firmware ||",
    "sanboot --no-describe --drive 0x80 ||",
    ":firmware",
    "exit 1",
)
"""``exit 1``: an error, after which the firmware tries the next boot entry. After a success, UEFI opens its set-up."""


def _ipxe_url(service: ServiceAddress) -> str:
    query = "mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&platform=${platform}&arch=${buildarch}"
    return f"{service.http_url}/{IPXE_SCRIPT}?{query}"


def _ipxe_retry(label: str) -> tuple[str, ...]:
    return (
        "inc attempt",
        f"iseq ${{attempt}} {_LOAD_ATTEMPTS_MAX} && goto give_up ||",
        f"echo diskcast: trying again in {_RETRY_S} s",
        f"sleep {_RETRY_S}",
        f"goto {label}",
        ":give_up",
    )


def _grub_device(service: ServiceAddress, *, by_http: bool) -> str:
    if not by_http:
        return f"(tftp,{service.address})"
    return f"(http,{service.address}:{service.http_port})"


def _grub_disk(reason: str) -> tuple[str, ...]:
    return (
        f'echo "diskcast: {reason}: booting from the disk"',
        *(
            f"if search --no-floppy --file --set=root {loader}; then chainloader {loader}; boot; fi"
            for loader in DISK_LOADERS
        ),
        "exit 1",
    )


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
