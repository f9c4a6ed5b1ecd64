"""Configuration of GRUB on a boot stick. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from protocol.control.boot_parameters import BootParameters, LiveMode, format_boot_parameters

KERNEL_ARGUMENTS: Final = "console=ttyS0,115200n8 console=tty0 quiet"
"""Both consoles of the machine; the last one is the screen, where a technician sits."""
MARKER: Final = "/diskcast/medium.json"
"""A file by which GRUB finds the stick among all disks."""
MENU_TIMEOUT_S: Final = 5


@dataclasses.dataclass(frozen=True, slots=True)
class StickMenu:
    """GRUB's menu.

    Attributes:
        default: mode of the entry that starts after a few seconds.
        initrds: names of the initrds, in order.
        root_sha256: SHA-256 of the squashfs.
        servers: URLs of daemons, besides those of the boot medium.
    """

    default: LiveMode
    initrds: Sequence[str]
    root_sha256: str
    servers: tuple[str, ...] = ()

    def configuration(self) -> str:
        """Return the text of ``grub.cfg``.

        GRUB's lines are the same for BIOS and UEFI. The signed GRUB has all modules that it may load built in.
        """
        modes = sorted(_TITLES, key=lambda mode: mode is not self.default)
        entries = "".join(self._entry(mode) for mode in modes)
        return f"""\
# A serial console works too, where there is one.
if serial --unit=0 --speed=115200; then
  terminal_input console serial
  terminal_output console serial
fi
search --no-floppy --set=root --file {MARKER}
set timeout={MENU_TIMEOUT_S}
set default=0
{entries}menuentry 'Start the system on the disk' {{
  exit
}}
"""

    def _entry(self, mode: LiveMode) -> str:
        parameters = BootParameters(servers=self.servers, mode=mode, root_sha256=self.root_sha256)
        initrds = " ".join(f"/diskcast/{name}" for name in self.initrds)
        return f"""\
menuentry '{_TITLES[mode]}' {{
  linux /diskcast/vmlinuz {KERNEL_ARGUMENTS} {format_boot_parameters(parameters)}
  initrd {initrds}
}}
"""


_TITLES: Final = {
    LiveMode.MENU: "diskcast: image this machine",
    LiveMode.RUN: "diskcast: wait for a cast of the daemon",
}

EMBEDDED: Final = f"""\
search --no-floppy --set=root --file {MARKER}
set prefix=($root)/EFI/debian
configfile ($root)/EFI/debian/grub.cfg
"""
"""Configuration inside of GRUB's image for BIOS; the signed one for UEFI reads /EFI/debian/grub.cfg itself."""

OPTICAL: Final = f"""\
search --no-floppy --set=root --file {MARKER}
configfile ($root)/EFI/debian/grub.cfg
"""
"""Configuration in the EFI image of a disc, which is too small for the kernel: it leads to the disc."""

BIOS_MODULES: Final = (
    "all_video", "biosdisk", "configfile", "echo", "fat", "halt", "iso9660", "linux", "ls", "minicmd", "normal",
    "part_gpt", "part_msdos", "reboot", "search", "search_fs_file", "serial", "sleep", "terminal", "test",
)  # fmt: skip
