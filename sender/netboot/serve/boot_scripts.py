"""Boot scripts for iPXE and GRUB: the live system, or the machine's own disk. Pure.

Both languages expand ``${name}`` and split words, so that no text from outside goes into a script: names and reasons
are reduced to harmless characters, and boot parameters have no others (:mod:`protocol.control.boot_parameters`).

A machine that boots from the network first must reach its disk, and never this service again in the same boot:

* iPXE on BIOS boots drive 0x80 itself (``sanboot``): much firmware starts over after a boot ROM returns.
* iPXE on UEFI starts a small GRUB, which starts the loader of the disk (:mod:`sender.netboot.disk_boot`).
* GRUB itself starts the loader of the disk. Under Secure Boot, shim checks its signature.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from protocol.control.boot_parameters import BootParameters, format_boot_parameters
from sender.netboot.disk_boot import grub_disk_commands
from sender.netboot.medium import KERNEL, Loader
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
        *_ipxe_disk(service),
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
        *_ipxe_disk(boot.service),
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
        *_ipxe_disk(service),
        *((":menu", menu) if boot.menu_offered else ()),
    )


def grub_start_script(service: ServiceAddress, *, by_http: bool) -> str:
    """Return the script that every GRUB gets first: it passes on the machine's identity.

    The serial number isn't in it: GRUB puts file names into its requests as they are, spaces included.
    """
    folder = f"{_grub_device(service, by_http=by_http)}/{GRUB_DECISION_FOLDER}"
    return _lines(
        "set timeout=0",
        "smbios --type 1 --get-uuid 8 --set uuid",
        f"configfile {folder}/$net_default_mac/$uuid/{GRUB_DECISION}",
        *grub_disk_commands("the boot service does not answer"),
    )


def grub_live_script(boot: LiveBoot, *, by_http: bool) -> str:
    """Return the script that boots the live system.

    The files come by the protocol of the script: Debian's signed GRUB for network boots has no HTTP of its own, and
    what UEFI HTTP Boot loads by HTTP has no TFTP server.
    """
    device = _grub_device(boot.service, by_http=by_http)
    files = " ".join(f"{device}/{name}" for name in boot.initrds)
    return _lines(
        "set timeout=0",
        f'echo "diskcast: starting the live system for {shown(boot.name) or "this machine"}"',
        f"if linux {device}/{KERNEL} {boot.command_line}; then if initrd {files}; then boot; fi; fi",
        *grub_disk_commands("the live system cannot be loaded"),
    )


def grub_disk_script(boot: DiskBoot, menu_file: str) -> str:
    """Return the script that boots from the disk, after a prompt for the menu, whose script is ``menu_file``."""
    if not boot.menu_offered:
        return _lines(*grub_disk_commands(shown(boot.reason)))
    return _lines(
        f"set timeout={MENU_PROMPT_S}",
        "set default=0",
        'menuentry "Boot from the disk" {',
        *grub_disk_commands(shown(boot.reason)),
        "}",
        f'menuentry "Image this machine (press {MENU_KEY})" --hotkey={MENU_KEY} {{',
        f"configfile {menu_file}",
        "}",
    )


def grub_menu_file(service: ServiceAddress, query: BootQuery, *, by_http: bool) -> str:
    """Return the file of the script behind the menu's key, for the machine of ``query``."""
    folder = f"{_grub_device(service, by_http=by_http)}/{GRUB_DECISION_FOLDER}"
    return "/".join([folder, *(part or "-" for part in (query.mac, query.uuid)), GRUB_MENU])


def shown(text: str) -> str:
    """Return ``text`` with only those characters that mean nothing to iPXE and GRUB."""
    return " ".join(_HARMLESS.sub(" ", text).split())[:_SHOWN_CHARS_MAX]


def _ipxe_disk(service: ServiceAddress) -> tuple[str, ...]:
    """Return the end of a script.

    ``exit 1`` is an error, after which the firmware tries the next boot entry. After a success, UEFI opens its set-up.
    """
    return (
        ":disk",
        "iseq ${platform} efi && goto efi_disk ||",
        "sanboot --no-describe --drive 0x80 ||",
        "exit 1",
        ":efi_disk",
        f"chain --autofree {service.http_url}/{PurePosixPath(Loader.DISK).name} ||",
        "exit 1",
    )


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


def _lines(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)
